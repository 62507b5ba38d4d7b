"""Counts that survive restarts, windows whose share is known, and probes that change no evidence."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serin.judge.judge import observe, start
from serin.judge.policy import LatencyMetric, Policy
from serin.judge.window import ArmCounts, Window
from serin.measure.tally import Counts, Tally, add, counters
from serin.platforms.kserve.measure import BEFORE, PROBES, SETTLE_S, Measured, measure, without_probes
from serin.platforms.kserve.service import Row, Service
from serin.rollout.document import Phase, Status

STATUS = Status(phase=Phase.PROGRESSING, stage=0, traffic=20, stable_revision="r1", candidate_revision="r2")


def asked(percent: int) -> Status:
    return STATUS.model_copy(update={"traffic": percent})


def service(percent: int, *, shown: int | None = None) -> Service:
    """P is `percent`, the rows still show `shown`."""
    share = percent if shown is None else shown
    rows = (Row("r2", share, "latest"), Row("r1", 100 - share, "prev"))
    return Service("churn", "1", {}, percent, "r2", "r2", "r1", rows=rows)


def codes(stable: int, candidate: int, errors: int = 0, pod: str = "kourier") -> dict[str, Any]:
    return {pod: {"r1 codes": {200: stable}, "r2 codes": {200: candidate, 500: errors}}}


def looks(
    *steps: tuple[float, Service, dict[str, Any]],
    status: Status = STATUS,
    active: list[dict[str, int] | None] | None = None,
    behind_s: float = 0,
) -> list[Window | None]:
    """The counts are `behind_s` old; `active` requests per look, none at all by default."""
    before: Measured | None = None
    windows = []
    under_way = active or [{}] * len(steps)
    for (at_s, seen, read), now_active in zip(steps, under_way, strict=True):
        before, window = measure(before, seen, status, Counts(at_s - behind_s, read, now_active), at_s)
        before = Measured.model_validate_json(before.model_dump_json(by_alias=True))
        windows.append(window)
    return windows


def test_traffic_moves_before_the_status_says_so() -> None:
    _, changing, arrived, settling, settled = looks(
        (0, service(20, shown=5), codes(0, 0)),
        (1, service(20, shown=5), codes(80, 20)),
        (2, service(20), codes(160, 40)),
        (3, service(20), codes(248, 68)),
        (3 + SETTLE_S, service(20), codes(328, 88)),
    )
    assert changing is not None
    assert arrived is not None
    assert settling is not None
    assert settled is not None
    assert [each.share for each in (changing, arrived, settling, settled)] == [None, None, 0.2, 0.2]
    assert [each.stage for each in (changing, arrived, settling, settled)] == [BEFORE, BEFORE, 0, 0]
    # 8 probes each are in it; as many answers are kept as fit the share
    assert (settling.stable.requests, settling.candidate.requests) == (88, 22)
    assert (settled.stable.requests, settled.candidate.requests) == (80, 20)


def test_a_change_that_is_on_its_way_is_under_way() -> None:
    """An API server answered a patch to 99 % after 20 s, and what the controller knew of the service was behind: 200
    requests split at 99 % were taken for some of those at 20 %, and the split looked broken until the deadline."""
    going = STATUS.model_copy(update={"stage": 1, "traffic": 99})
    before, windows = None, []
    for at_s, status, read in (
        (0.0, STATUS, codes(0, 0)),
        (SETTLE_S, STATUS, codes(640, 160)),
        (SETTLE_S + 1, STATUS, codes(720, 180)),
        (SETTLE_S + 2, going, codes(760, 240)),
        (SETTLE_S + 3, going, codes(761, 339)),
    ):
        before, window = measure(before, service(20), status, Counts(at_s, read, {}), at_s)
        windows.append(window)
    assert [each and (each.share, each.stage) for each in windows] == [None, (0.2, 0), (0.2, 0), (None, 0), (None, 0)]


def test_latencies_of_a_gateway_that_tells_them_late_are_not_judged_by_a_split_they_are_not_of() -> None:
    """Kourier's Envoy: histograms show what was counted up to 5 s ago, probes included. The split goes from 5 to 50 %
    at 10 s; each look shows 100 more answers, and the latencies of the look before."""
    before: Measured | None = None
    kept = []
    stable = candidate = 0
    late: dict[str, Any] = {"r1 latency": {3: 0}, "r2 latency": {3: 0}}
    for at_s in range(0, 45, 5):
        share = 5 if at_s <= 10 else 50
        stable, candidate = stable + 100 - share, candidate + share
        read = {"kourier": codes(stable, candidate)["kourier"] | late}
        late = {"r1 latency": {3: stable}, "r2 latency": {3: candidate}}
        counts = Counts(float(at_s), read, {}, latency_lag_s=5.0)
        before, window = measure(before, service(share := 5 if at_s < 10 else 50), asked(share), counts, at_s)
        if window is not None and window.stage != BEFORE:
            told = tuple(sum(arm.latency.values()) for arm in (window.stable, window.candidate))
            kept.append((window.start_s, window.share, told))
    assert kept == [
        (0, 0.05, (0, 0)),
        (5, None, (0, 0)),
        (10, 0.5, (0, 0)),
        (15, 0.5, (0, 0)),
        (20, 0.5, (0, 0)),
        (25, 0.5, (50, 50)),
        (30, 0.5, (50, 50)),
        (35, 0.5, (50, 50)),
    ]


@pytest.mark.parametrize(("lag_s", "harm"), [(5.0, False), (None, True)])
def test_late_latencies_do_not_roll_a_good_candidate_back(lag_s: float | None, *, harm: bool) -> None:
    """As seen on a cluster, at 100 requests/s: the candidate's latencies fell short of its new share of 25 %. That
    they would have been taken for harm shows what is at stake."""
    policy = Policy(latency=LatencyMetric(tolerance_ms=100))
    state, before = start(policy), None
    stable = candidate = 0
    late: dict[str, Any] = {"r1 latency": {80: 0, 94: 0}, "r2 latency": {48: 0}}
    for at_s in range(0, 90, 5):
        share = 0.05 if at_s <= 60 else 0.25
        read = {"kourier": codes(stable, candidate)["kourier"] | late}
        counts = Counts(float(at_s), read, {}, latency_lag_s=lag_s)
        before, window = measure(before, service(percent := 5 if at_s < 60 else 25), asked(percent), counts, at_s)
        state = state if window is None else observe(state, window)
        late = {"r1 latency": {80: stable - stable // 50, 94: stable // 50}, "r2 latency": {48: candidate}}
        candidate += round(500 * share)
        stable += 500 - round(500 * share)
    assert (state.peak > 1 / policy.alpha) == harm


@pytest.mark.parametrize(("apart", "harm"), [(True, False), (False, True)])
def test_a_rise_of_the_load_between_two_scrapes_is_no_harm(*, apart: bool, harm: bool) -> None:
    """The candidate's pod is scraped 4 s after stable's, when the load has gone from 10 to 1,000 requests/s; a tenth
    of the answers of both fails."""
    state, before, shares = start(Policy()), None, set()

    def served(at_s: float) -> float:
        return 10 * min(at_s, 27) + 1000 * max(0, at_s - 27)

    for at_s in range(0, 45, 5):
        stable, candidate = round(0.8 * served(at_s)), round(0.2 * served(at_s + 4))
        read = {
            "pod 1": {"r1 codes": {200: stable - stable // 10, 500: stable // 10}},
            "pod 2": {"r2 codes": {200: candidate - candidate // 10, 500: candidate // 10}},
        }
        before, window = measure(before, service(20), STATUS, Counts(at_s, read, {}, apart=apart), at_s)
        if window is not None:
            state = observe(state, window)
            shares.add(window.share)
    assert (state.peak > 1 / state.policy.alpha) == harm
    assert 0.2 in shares  # by which windows are told that count for the stage


def test_answers_to_requests_that_an_earlier_split_routed_say_nothing_about_this_one() -> None:
    """Three requests are under way when the split is first seen in force; probes are counted as answers."""
    at = [float(second) for second in range(6)]
    windows = looks(
        (at[0], service(20, shown=5), codes(0, 0)),
        (at[1], service(20), codes(95, 5)),
        (at[2], service(20), codes(107, 15)),  # of these 22 answers up to 20 are probes
        (at[3], service(20), codes(112, 19)),
        (at[4], service(20), codes(122, 30)),
        (at[5], service(20), codes(202, 50)),
        active=[{"r1": 9}, {"r1": 3, "r2": 0}, {"r1": 3}, {"r1": 3}, {"r1": 4}, {"r1": 4}],
    )
    assert [window.share for window in windows if window is not None] == [None, None, None, None, 0.2]


def test_old_requests_are_gone_at_the_latest_when_none_is_under_way() -> None:
    *_, settled = looks(
        (0, service(20), codes(0, 0)),
        (1, service(20), codes(1, 0)),
        (2, service(20), codes(9, 2)),
        active=[{"r1": 3}, {"r1": 0}, {"r1": 5}],
    )
    assert settled is not None
    assert settled.share == 0.2
    assert PROBES > 11


def test_counts_from_before_the_split_are_not_under_it_however_late_they_are_told() -> None:
    """A source that scrapes every so often tells at 3 what was so at 0."""
    windows = looks(
        *((float(now), service(20), codes(8 * now, 2 * now)) for now in range(1, 7)),
        behind_s=3,
    )
    assert [window.share for window in windows if window is not None] == [None, None, None, 0.2, 0.2]


def test_who_does_not_tell_what_is_under_way_is_given_time() -> None:
    steps = [(4.0 * look, service(20), codes(32 * look, 8 * look)) for look in range(5)]
    windows = looks(*steps, active=[None] * 5)
    assert [window.share for window in windows if window is not None] == [None, None, 0.2, 0.2]


def test_nothing_new_is_no_window() -> None:
    before, _ = measure(None, service(20), STATUS, Counts(1.0, codes(0, 0)), 1.0)
    assert measure(before, service(20), STATUS, Counts(1.0, codes(5, 5)), 2.0) == (before, None)


def test_a_clock_set_back_blinds_nobody() -> None:
    """An hour back, as when another controller takes over on a node whose clock is late."""
    steps = [(float(k), service(20), codes(80 * k, 20 * k)) for k in range(10, 14)]
    windows = looks(*steps, *((at_s - 3600 + 4, seen, codes(80 * k, 20 * k)) for k, (at_s, seen, _) in
                              enumerate(steps, start=14)))  # fmt: skip
    counted = [(window.stable.requests, window.share) for window in windows[1:] if window is not None]
    assert len(counted) == len(windows) - 1
    assert [share for _, share in counted] == [0.2, 0.2, 0.2, None, 0.2, 0.2, 0.2]
    assert counted[3][0] == 80


def test_a_source_that_tells_older_counts_for_a_moment_is_not_believed() -> None:
    before, _ = measure(None, service(20), STATUS, Counts(20.0, codes(90, 10)), 20.0)
    assert measure(before, service(20), STATUS, Counts(5.0, codes(5, 5)), 21.0) == (before, None)


def test_errors_count_while_probes_are_about() -> None:
    *_, window = looks(
        (0, service(5), codes(0, 0)),
        (1, service(5), codes(8, 8, errors=6)),
        status=asked(5),
    )
    assert window is not None
    assert window.candidate.events["errors"] == 6
    assert window.candidate.requests == 6
    assert window.share == 0.05


def test_no_window_without_traffic_on_the_candidate() -> None:
    assert looks((0, service(0), codes(5, 0)), (1, service(0), codes(9, 0))) == [None, None]


def test_a_gateway_that_is_restarted_or_joins_loses_counts_but_invents_none() -> None:
    tally = add(Tally(), {"a": {"r1 codes": {200: 1000}}})
    tally = add(tally, {"a": {"r1 codes": {200: 1010}}})
    tally = add(tally, {"b": {"r1 codes": {200: 70}}})  # another pod: where it began is not known
    tally = add(tally, {"b": {"r1 codes": {200: 75}}})
    assert counters(tally, "r1").codes == {200: 15}


def test_a_revision_that_comes_back_counts_from_zero() -> None:
    """Kourier drops the series of a revision some time after it has left the route."""
    tally = add(Tally(), {"a": {"r1 codes": {200: 508}}})
    tally = add(tally, {"a": {"r1 codes": {}}})
    tally = add(tally, {"a": {"r1 codes": {200: 395}}})
    assert counters(tally, "r1").codes == {200: 395}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 50), st.booleans()), max_size=30))
def test_the_tally_never_exceeds_what_was_answered(steps: list[tuple[str, int, bool]]) -> None:
    answered, kept = 0, dict.fromkeys("abc", 0)
    tally = Tally()
    for pod, requests, restarted in steps:
        kept[pod] = requests if restarted else kept[pod] + requests
        answered += requests
        before = counters(tally, "r1").codes.get(200, 0)
        tally = add(tally, {pod: {"r1 codes": {200: kept[pod]}} for pod in kept})
        assert before <= counters(tally, "r1").codes.get(200, 0) <= answered


@given(
    share=st.integers(1, 99),
    real=st.integers(0, 500),
    probes=st.integers(0, 20),
    errors=st.integers(0, 5),
)
def test_what_is_kept_while_probes_are_about_fits_the_share(share: int, real: int, probes: int, errors: int) -> None:
    candidate = real * share // 100 + probes + errors
    window = Window(
        id=1,
        start_s=0,
        end_s=1,
        stage=0,
        share=share / 100,
        stable=ArmCounts(requests=real - real * share // 100 + probes),
        candidate=ArmCounts(requests=candidate, events={"errors": errors}),
    )
    kept = without_probes(window)
    assert kept.candidate.requests <= candidate
    assert kept.stable.requests <= window.stable.requests
    assert kept.candidate.events == window.candidate.events
    assert kept.candidate.requests >= errors
    both = kept.candidate.requests + kept.stable.requests
    assert abs(kept.candidate.requests - both * share / 100) <= 1 + errors + both / 100


def test_the_window_of_a_full_split_is_left_alone() -> None:
    window = Window(1, 0, 1, 0, None, ArmCounts(requests=3), ArmCounts(requests=9))
    assert without_probes(window) == window
    assert without_probes(dataclasses.replace(window, share=1.0)).candidate.requests == 9


def told_apart(*looks: tuple[dict[int, int], dict[int, int]], complete: bool = True) -> dict[int, int]:
    """What remains of the gateway's answers beside those that the model server counted."""
    tally = Tally()
    for answers, predictions in looks:
        read = {"kourier": {"r1 codes": answers}, "pod": {"r1 predictions": predictions}}
        tally = add(tally, read, complete=complete)
    return {code: count for code, count in counters(tally, "r1", predictions_alone=True).codes.items() if count}


def test_probes_monitors_scanners_and_health_checks_are_no_predictions() -> None:
    assert told_apart(({200: 7, 404: 2}, {200: 4}), ({200: 157, 404: 92, 405: 3}, {200: 14})) == {200: 10}


def test_what_a_dead_model_server_could_not_count_are_errors() -> None:
    assert told_apart(({200: 50}, {200: 50}), ({200: 150, 503: 40}, {200: 50})) == {503: 40}


def test_errors_over_grpc_are_answers_200_at_the_gateway() -> None:
    assert told_apart(({200: 0}, {}), ({200: 30}, {500: 28, 400: 2})) == {500: 28, 400: 2}


def test_while_a_model_server_does_not_tell_nothing_is_taken_apart() -> None:
    assert told_apart(({200: 0}, {}), ({200: 30}, {}), complete=False) == {200: 30}


@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 5), st.booleans()), min_size=1, max_size=30
    )
)
def test_predictions_are_never_more_than_there_were_and_never_fewer_than_before(
    looks: list[tuple[int, int, int, bool]],
) -> None:
    """Model servers are read a little later than the gateway; some looks are incomplete."""
    tally, asked, others_asked, told, jitters, before = Tally(), 0, 0, 0, [0], 0
    for predictions, others, sooner, complete in [(0, 0, 0, True), *looks]:
        asked, others_asked = asked + predictions, others_asked + others
        jitters.append(sooner)
        told = max(told, asked + sooner)
        read = {
            "kourier": {"r1 codes": {200: asked + others_asked}},
            "pod": {"r1 predictions": {200: told}},
        }
        tally = add(tally, read, complete=complete)
        kept = counters(tally, "r1", predictions_alone=True).codes.get(200, 0)
        assert before <= kept <= asked + others_asked
        if complete and len(jitters) > 2 and all(look[3] for look in looks):
            assert asked - max(jitters) <= kept <= asked + max(jitters)
        before = kept


def test_predictions_among_other_requests_are_judged_by_the_requests_seen() -> None:
    """They were counted at another moment than the gateway's split; what is no prediction says nothing of it."""

    def read(stable: int, candidate: int, monitored: int) -> dict[str, Any]:
        predictions = {"r1 predictions": {200: stable}, "r2 predictions": {200: candidate}}
        return codes(stable + monitored, candidate + monitored) | {"servers": predictions}

    quiet, busy = looks(
        (0, service(20), read(0, 0, 0)),
        (20, service(20), read(80, 20, 0)),
        (30, service(20), read(160, 40, 500)),
    )[1:]
    assert quiet is not None
    assert busy is not None
    assert (quiet.counted_apart, busy.counted_apart) == (False, True)
    assert (busy.share, busy.stable.requests, busy.candidate.requests) == (0.2, 80, 20)


def test_where_one_revision_does_not_count_predictions_both_are_judged_by_all_requests() -> None:
    """A foreign model server beside one of serin's."""
    answers = codes(90, 30)["kourier"]
    *_, window = looks(
        (0, service(20), {"kourier": codes(0, 0)["kourier"], "servers": {"r2 predictions": {}}}),
        (20, service(20), {"kourier": answers, "servers": {"r2 predictions": {200: 20}}}),
    )
    assert window is not None
    assert (window.stable.requests, window.candidate.requests) == (90, 30)


def with_refunds(stable: int, candidate: int, refunds: int) -> dict[str, Any]:
    told = {f"{name} event refunds": {0: 1000 * refunds} for name in ("r1", "r2")}
    return codes(stable, candidate) | {"pod": told}


def refunds_of(*steps: tuple[float, Service, dict[str, Any]], told: bool = True) -> list[tuple[int, float | None]]:
    """The candidate's requests and refunds, window by window."""
    before: Measured | None = None
    found = []
    for at_s, seen, read in steps:
        reports = {name: ("refunds",) for name in ("r1", "r2") if told}
        before, window = measure(before, seen, STATUS, Counts(at_s, read, {}, reports=reports), at_s)
        before = Measured.model_validate_json(before.model_dump_json(by_alias=True))
        found += [(window.candidate.requests, window.candidate.events.get("refunds"))] if window else []
    return found


def test_events_of_a_declared_metric_wait_for_their_requests() -> None:
    steps = (
        (0.0, service(20), with_refunds(0, 0, 0)),
        (20.0, service(20), with_refunds(80, 20, 5)),
        (40.0, service(20), with_refunds(80, 20, 8)),
        (60.0, service(20), with_refunds(160, 22, 8)),
        (80.0, service(20), with_refunds(240, 40, 9)),
    )
    assert refunds_of(*steps) == [(20, 5), (0, 0), (2, 2), (18, 2)]
    assert refunds_of(*steps, told=False) == [(20, None), (0, None), (2, None), (18, None)]


def test_probes_are_taken_out_of_a_window_whatever_is_declared() -> None:
    """A customer's refund may well be one of the errors."""
    arm = ArmCounts(requests=40, events={"errors": 4, "rejected": 2, "refunds": 6, "returns": 6})
    window = Window(id=1, start_s=0, end_s=1, stage=0, share=0.5, stable=ArmCounts(requests=10), candidate=arm)
    assert without_probes(window).candidate.requests == 10
