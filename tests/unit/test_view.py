"""The live view and its plain lines, over whole simulated rollouts."""

import io
from datetime import timedelta

import pytest
import rollouts
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType
from rollouts import Behaviour, Frame

from serin.cli.view import Silence, follow, plain, table, view
from serin.judge import timeline
from serin.judge.policy import JudgeSpec, ScoreMetric, Scores
from serin.judge.timeline import Arm
from serin.measure.windows import to_document
from serin.model.histograms import LATENCY_EDGES_S, bucket
from serin.plan import Checks
from serin.report import words
from serin.rollout.document import Check, Counted, MetricEvidence, Phase, Ratio, Requests, Status
from serin.rollout.reconcile import Observation, Revision, reconcile

BAD_CHECK = Check(
    name="answers", passed=False, detail="21 of 21 requests \x1b[31mwithout\x1b[0m a valid [bold]answer"
)
STORIES = {
    "promoted": {"candidate": Behaviour(errors=0.002)},
    "rolled back": {"candidate": Behaviour(errors=0.8)},
    "refused": {"checks": (BAD_CHECK,)},
    "first model": {"stable": None},
    "no traffic": {"rate": 0, "limit_s": 20},
}


@pytest.fixture(scope="module")
def stories() -> dict[str, list[Frame]]:
    return {name: list(rollouts.run(rollouts.rollout(), **told)) for name, told in STORIES.items()}


def shown(renderable: RenderableType, width: int = 110) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    return console.file.getvalue()


def screen(frame: Frame, width: int = 110) -> str:
    return shown(view(frame.rollout, frame.windows, frame.now), width)


def test_every_frame_of_every_story_fits_on_a_screen(stories):
    seen = set()
    for frames in stories.values():
        for frame in frames[:: max(1, len(frames) // 25)] + frames[-3:]:
            text = screen(frame)
            seen.add(frame.rollout.status.phase)
            assert frame.rollout.metadata.name in text and frame.rollout.status.phase in text
            assert len(text.splitlines()) <= 30
            assert "\x1b" not in text
    assert seen >= {Phase.DARK, Phase.CHECKING, Phase.PROGRESSING, Phase.BAKING, Phase.PROMOTED, Phase.ROLLED_BACK}


@pytest.mark.parametrize("phase", Phase)
def test_every_phase_is_shown_with_an_empty_status(phase):
    wanted = rollouts.rollout().model_copy(update={"status": Status(phase=phase, reason="because [red]")})
    assert "Because [red]." in screen(Frame(wanted, [], rollouts.START))


@pytest.mark.parametrize("width", [80, 110])
def test_the_figures_are_those_of_the_status_and_of_the_last_30_seconds(stories, width):
    frames = stories["promoted"]
    frame = next(each for each in frames if each.rollout.status.stage == 1 and len(each.windows) > 40)
    status, text = frame.rollout.status, screen(frame, width)
    assert f"{status.requests.stable:,}" in text and f"{status.requests.candidate:,}" in text
    recent = [timeline.from_document(w) for w in frame.windows if w["endS"] > frame.now.timestamp() - 30]
    assert len(recent) < len(frame.windows) or frame.windows[0]["endS"] > frame.now.timestamp() - 30
    for arm in Arm:
        line = next(each for each in text.splitlines() if each.startswith(arm))
        counts = timeline.total(recent, arm).latency
        assert words.latency(timeline.latency_s(counts, 0.99)) in line
    assert "planned 25 %" in text and "● 25 %" in text and "✓ 5 %" in text


def test_observed_share_counts_only_windows_under_the_split_in_force(stories):
    for frame in stories["promoted"][::5]:
        if frame.rollout.status.stage == 2:
            observed = next(
                line for line in screen(frame).splitlines() if "observed" in line or "no requests" in line
            )
            if "observed" in observed:
                share = float(observed.split("observed")[1].split("%")[0])
                assert share == pytest.approx(50, abs=15)


def test_a_rolled_back_candidate_is_marked_where_it_stopped(stories):
    text = screen(stories["rolled back"][-1])
    assert "✗ 5 %" in text and "harm proven" in text and "planned" not in text
    assert "✗ checks" in screen(stories["refused"][-1])


def track(frame: Frame) -> str:
    return next(line for line in screen(frame).splitlines() if "start" in line).strip()


def test_only_what_happened_is_ticked(stories):
    assert (
        track(stories["promoted"][-1]) == "✓ start ── ✓ checks ── ✓ 5 % ── ✓ 25 % ── ✓ 50 % ── ✓ bake 99 % ── ✓ 100 %"
    )
    assert track(stories["first model"][-1]) == "✓ start ── ✓ checks ── ✓ 100 %"
    unchecked = rollouts.SHORT.model_copy(update={"checks": Checks.NONE})
    frame = rollouts.last(rollouts.rollout(plan=unchecked), candidate=Behaviour(errors=0.8))
    assert track(frame) == "✓ start ── ✗ 5 % ── ○ 25 % ── ○ 50 % ── ○ bake 99 % ── ○ 100 %"


def test_stages_that_somebody_skipped_are_not_ticked():
    early = next(each for each in rollouts.run(rollouts.rollout()) if each.rollout.status.stage == 1).rollout
    promoted = early.model_copy(update={"spec": early.spec.model_copy(update={"promote": True})})
    seen = Observation(Revision("churn-00001", ready=True), Revision("churn-00002", ready=True), split=25)
    for _ in range(2):
        status, _ = reconcile(promoted.spec, promoted.status, seen, rollouts.START)
        promoted = promoted.model_copy(update={"status": status})
        seen = Observation(stable=Revision("churn-00002", ready=True))
    assert track(Frame(promoted, [], rollouts.START)) == (
        "✓ start ── ✓ checks ── ✓ 5 % ── ✓ 25 % ── – 50 % ── – bake 99 % ── ✓ 100 %"
    )


def test_what_is_judged_is_said_where_it_is_more_than_predictions(stories):
    frame = next(each for each in stories["promoted"] if each.rollout.status.stage == 1)
    assert frame.rollout.status.counted is Counted.PREDICTIONS and words.ALL_REQUESTS not in screen(frame)
    status = frame.rollout.status.model_copy(update={"counted": Counted.REQUESTS})
    other = Frame(frame.rollout.model_copy(update={"status": status}), frame.windows, frame.now)
    assert words.ALL_REQUESTS in screen(other)


def test_a_narrow_terminal_and_a_wide_one(stories):
    for width in (50, 80, 200):
        text = screen(stories["promoted"][60], width)
        assert max(map(len, text.splitlines())) <= width


def test_metric_states_follow_the_judges_own_limits():
    judge = JudgeSpec()

    def state(metric: str, log10_e: float, **told: bool) -> words.State:
        told = {"safe": False, **told}
        evidence = MetricEvidence(metric=metric, log10_e=log10_e, ratio=Ratio(), requests=Requests(), **told)
        return words.metric_state(evidence, judge)

    assert state("errors", 0.2) is words.State.WATCHING
    assert state("errors", 0.2, safe=True) is words.State.SAFE
    assert state("errors", 1.2, safe=True) is words.State.SUSPECT
    assert state("errors", 2.2) is words.State.SUSPECT
    assert state("errors", 2.4) is words.State.HARM
    assert state("split", 2.9) is words.State.SUSPECT
    assert state("split", 3.0) is words.State.HARM
    assert state("latency", 0.0, judged=False) is words.State.NOT_JUDGED
    judge = JudgeSpec(scores=ScoreMetric(expected=Scores.DIFFERENT))
    assert state("scores", -0.1, judged=False) is words.State.NOT_JUDGED


def test_plain_lines_tell_every_step_once_and_progress_every_five_seconds(stories):
    for frames in stories.values():
        printed, printed_at, lines = None, rollouts.START, []
        for frame in frames:
            new = plain(printed, frame.rollout.status, since_s=(frame.now - printed_at).total_seconds())
            if new:
                progress = [line for line in new if line.startswith("  ")]
                assert len(progress) <= 1
                if progress and printed is not None:
                    assert frame.now - printed_at >= timedelta(seconds=5)
                printed, printed_at = frame.rollout.status, frame.now
            lines += new
        steps = [line for line in lines if not line.startswith("  ")]
        assert len(steps) == len(frames[-1].rollout.status.history)
        assert all("\n" not in line and "\x1b" not in line for line in lines)


def test_plain_says_at_once_why_nothing_has_begun():
    waiting = Status(reason="waiting for rollout churn-1 of the same service")
    assert plain(None, waiting, since_s=0) == ["  Pending: Waiting for rollout churn-1 of the same service."]
    assert plain(waiting, waiting, since_s=4) == []
    assert plain(waiting, waiting, since_s=5) != []


def followed(frames, terminal, problem=None):
    """The rollout as last read, and what was shown."""
    frames = iter(frames)
    clock = [rollouts.START]

    def read():
        frame = next(frames)
        clock[0] = frame.now
        return frame.rollout, frame.windows, problem

    out = io.StringIO()
    ended = follow(
        read,
        console=Console(file=out, force_terminal=terminal, width=100),
        until=lambda rollout: rollout.status.phase.terminal,
        sleep=lambda _: None,
        clock=lambda: clock[0],
    )
    return ended, out.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_follow_ends_with_the_last_reading(stories, terminal):
    ended, text = followed(stories["rolled back"], terminal)
    assert ended.status.phase is Phase.ROLLED_BACK
    assert "RolledBack" in text
    assert ("\x1b[?25l" in text and text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")) is terminal
    assert ("\x1b" in text) is terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_what_keeps_the_platform_from_work_is_told_until_the_end(stories, terminal):
    ended, text = followed(stories["promoted"], terminal, problem="no supervisor works")
    assert ended.status.phase is Phase.PROMOTED
    before, _, after = text.rpartition("Promoted")
    assert "No supervisor works." in before and "No supervisor works." not in after


def test_an_interrupt_gives_the_cursor_back_and_goes_on():
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        follow(
            lambda: (rollouts.rollout(), [], None),
            console=Console(file=out, force_terminal=True, width=100),
            until=lambda _: False,
            sleep=interrupted,
        )
    assert out.getvalue().rindex("\x1b[?25h") > out.getvalue().rindex("\x1b[?25l")


def test_the_table_has_a_row_for_each_rollout(stories):
    listed = [frames[-1].rollout for frames in stories.values()]
    text = shown(table(listed, rollouts.START + timedelta(minutes=12), width=200), 200)
    assert text.split()[:8] == ["NAME", "SERVICE", "PHASE", "STAGE", "TRAFFIC", "EVIDENCE", "AGE", "REASON"]
    assert text.count("churn-2") == len(listed) and "12m" in text and "Promoted" in text and "RolledBack" in text


def test_windows_survive_their_documents(stories):
    for document in stories["promoted"][-1].windows:
        assert to_document(timeline.from_document(document)) == document


@given(st.lists(st.floats(1e-5, 30), min_size=1, max_size=50), st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_at_most_one_bucket_above_the_true_one(values, quantile):
    counts: dict[int, int] = {}
    for value in values:
        counts[bucket(LATENCY_EDGES_S, value)] = counts.get(bucket(LATENCY_EDGES_S, value), 0) + 1
    found = timeline.latency_s(counts, quantile)
    true = sorted(values)[max(0, -int(-quantile * len(values) // 1) - 1)]
    assert found is not None and found >= true
    assert bucket(LATENCY_EDGES_S, found) == bucket(LATENCY_EDGES_S, true)


def test_slots_lose_no_window(stories):
    frame = stories["promoted"][-1]
    windows = [timeline.from_document(document) for document in frame.windows]
    cut = timeline.slots(windows, 17, start_s=windows[0].start_s, end_s=windows[-1].end_s)
    for arm in Arm:
        counts = [slot.stable if arm is Arm.STABLE else slot.candidate for slot in cut]
        assert sum(each.requests for each in counts) == timeline.total(windows, arm).requests


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (119.4, "119 s"), (120, "2 min"), (194, "3 min 14 s"), (7199, "119 min 59 s"), (9000, "2 h 30 min")],
)
def test_durations(seconds, text):
    assert words.duration(seconds) == text


def test_in_a_narrow_terminal_each_rollout_keeps_its_line(stories):
    listed = [frames[-1].rollout for frames in stories.values()]
    text = shown(table(listed, rollouts.START + timedelta(minutes=12), width=80), 80)
    assert "REASON" not in text and len(text.splitlines()) == 1 + len(listed)


def test_a_rollout_without_requests_says_what_it_waits_for(stories):
    frame = next(each for each in stories["promoted"] if each.rollout.status.phase is Phase.PROGRESSING)
    silence = Silence()
    assert silence.lasting(frame.rollout, 0) is None
    assert silence.lasting(frame.rollout, 29) is None
    assert silence.lasting(frame.rollout, 31) == "waits for requests: none for 30 s; send some or use --traffic"
    more = Requests(stable=frame.rollout.status.requests.stable + 1)
    answered = frame.rollout.model_copy(update={"status": frame.rollout.status.model_copy(update={"requests": more})})
    assert silence.lasting(answered, 62) is None
