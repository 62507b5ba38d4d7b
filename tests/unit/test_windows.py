"""From counters that only grow, and are lost with their process, to windows that count each answer once."""

from collections import Counter
from itertools import pairwise

import hypothesis.strategies as st
from hypothesis import given, settings

from serin.judge import timeline
from serin.measure.windows import (
    CUT_OFF,
    TIMED_OUT,
    Counters,
    Reading,
    ServerCounts,
    following,
    to_document,
    window_between,
)


def reading(at_s: float, stable: Counters, candidate: Counters, *, percent: int = 25, gateway: str = "1") -> Reading:
    number = round(at_s * 10)
    return Reading(
        at_s=at_s, window_id=number, stage=1, percent=percent, gateway=gateway, stable=stable, candidate=candidate
    )


def counters(ok: int, errors: int = 0, rejected: int = 0, *, boot: str = "a", fast: int | None = None) -> Counters:
    codes = {code: count for code, count in ((200, ok), (503, errors), (400, rejected)) if count}
    server = ServerCounts(boot=boot, latency={70: ok if fast is None else fast}, score={3: ok})
    return Counters(codes=codes, servers={0: server})


def silent(codes: dict[int, int]) -> Counters:
    return Counters(codes=codes, servers={0: ServerCounts(boot=None)})


def test_a_window_is_what_was_answered_meanwhile():
    window = window_between(
        reading(1.0, counters(100, 2, 1), counters(30)), reading(1.5, counters(160, 5, 1), counters(50, 0, 4))
    )
    assert (window.id, window.start_s, window.end_s, window.stage, window.share) == (15, 1.0, 1.5, 1, 0.25)
    assert (window.stable.requests, dict(window.stable.events)) == (63, {"errors": 3, "rejected": 0})
    assert (window.candidate.requests, dict(window.candidate.events)) == (24, {"errors": 0, "rejected": 4})
    assert dict(window.stable.latency) == {70: 60} and dict(window.candidate.score) == {3: 20}


def test_requests_whose_clients_gave_up_are_errors_but_those_answered_504_count_once():
    before = counters(100).model_copy(update={"unanswered": {CUT_OFF: 40, TIMED_OUT: 8}})
    after = counters(100, 3).model_copy(update={"unanswered": {CUT_OFF: 53, TIMED_OUT: 11}})
    window = window_between(reading(1, counters(9), before), reading(2, counters(9), after))
    assert (window.candidate.requests, window.stable.requests) == (13, 0)
    assert dict(window.candidate.events) == {"errors": 13, "rejected": 0, "abandoned": 10}
    assert dict(window.stable.events) == {"errors": 0, "rejected": 0}


def test_a_request_that_is_cut_off_later_than_its_time_out_was_counted_is_no_negative_count():
    before = counters(1).model_copy(update={"unanswered": {CUT_OFF: 4, TIMED_OUT: 4}})
    after = counters(1).model_copy(update={"unanswered": {CUT_OFF: 4, TIMED_OUT: 5}})
    window = window_between(reading(1, counters(1), before), reading(2, counters(1), after))
    assert window.candidate.requests == 0 and "abandoned" not in window.candidate.events


def test_a_split_that_changed_inside_a_window_is_not_given():
    before, after = reading(1, counters(1), counters(1)), reading(2, counters(9), counters(9), percent=50)
    assert window_between(before, after).share is None


def test_a_gateway_that_was_restarted_counts_from_zero():
    before = reading(1, counters(100, 9), counters(30), gateway="1")
    after = reading(2, counters(40), counters(130), gateway="2")
    window = window_between(before, after)
    assert (window.stable.requests, window.candidate.requests) == (40, 130)
    assert window.stable.events["errors"] == 0


def test_a_counter_that_went_down_was_reset():
    window = window_between(reading(1, counters(100, 9), counters(1)), reading(2, counters(40, 2), counters(1)))
    assert (window.stable.requests, window.stable.events["errors"]) == (42, 2)


def test_a_predictor_that_was_restarted_counts_from_zero_while_the_gateway_goes_on():
    window = window_between(
        reading(1, counters(100), counters(50, boot="a")), reading(2, counters(110), counters(60, boot="b", fast=7))
    )
    assert window.candidate.requests == 10 and dict(window.candidate.latency) == {70: 7}


def test_what_a_predictor_counted_before_its_first_answer_is_not_taken():
    window = window_between(reading(1, counters(1), silent({200: 5})), reading(2, counters(1), counters(900)))
    assert window.candidate.requests == 895 and dict(window.candidate.latency) == {}


def servers(*counts: ServerCounts) -> Counters:
    return Counters(servers=dict(enumerate(counts)))


def test_the_processes_of_a_revision_count_each_for_itself():
    before = servers(
        ServerCounts(boot="a", latency={70: 100}), ServerCounts(boot="b", latency={70: 50}, score={1: 5})
    )
    after = servers(
        ServerCounts(boot="a", latency={70: 103, 71: 1}),
        ServerCounts(boot="c", latency={70: 2}, score={1: 2}),  # was killed, and started again
        ServerCounts(boot="d", latency={70: 900}),  # counted before the first look at it: not known since when
    )
    window = window_between(reading(1, before, before), reading(2, after, after))
    assert dict(window.stable.latency) == {70: 5, 71: 1} and dict(window.stable.score) == {1: 2}


def test_a_request_that_a_retry_saved_is_an_error_of_its_revision():
    def tried_again(ok: int, errors: int, retried: int) -> Counters:
        return counters(ok, errors).model_copy(update={"retried": retried})

    before = reading(1, counters(100), tried_again(100, 1, 4))
    after = reading(2, counters(110), tried_again(108, 2, 7))
    window = window_between(before, after)
    assert (window.candidate.requests, window.candidate.events["errors"]) == (9, 4)
    assert window.stable.events["errors"] == 0
    another = window_between(before, reading(2, counters(3), tried_again(2, 0, 1), gateway="2"))
    assert (another.candidate.requests, another.candidate.events["errors"]) == (2, 1)
    late = window_between(before, reading(2, counters(110), tried_again(101, 1, 9)))
    assert late.candidate.events["errors"] == late.candidate.requests == 1, "never more errors than requests"


def declared(requests: int, refunds: float | None, *, boot: str = "a") -> Counters:
    events = {} if refunds is None else {"refunds": refunds}
    server = ServerCounts(boot=boot, events=events)
    return Counters(codes={200: requests}, servers={0: server}, reports=tuple(events))


def refunds(*candidate: Counters) -> list[tuple[int, float | None]]:
    """The candidate's requests and refunds, window by window."""
    readings = followed(*(reading(at_s, Counters(), counted) for at_s, counted in enumerate(candidate, start=1)))
    windows = [window_between(*pair).candidate for pair in pairwise(readings)]
    return [(each.requests, each.events.get("refunds")) for each in windows]


def test_events_of_a_declared_metric_are_counted_per_window():
    assert refunds(declared(10, 3), declared(20, 5.5), declared(25, 5.5)) == [(10, 2.5), (5, 0)]


def test_events_of_a_process_that_was_started_again_count_from_zero():
    assert refunds(declared(10, 30), declared(20, 32), declared(30, 4, boot="b")) == [(10, 2), (10, 4)]


def test_events_seen_before_their_requests_wait_for_them():
    """The model server counts while it answers, the gateway when it has the answer."""
    assert refunds(declared(10, 0), declared(10, 2), declared(11, 2), declared(20, 3)) == [(0, 0), (1, 1), (9, 2)]


def test_events_of_requests_split_otherwise_are_not_carried_over():
    first, second, third = declared(10, 0), declared(10, 2), declared(20, 2)
    readings = followed(
        reading(1, Counters(), first), reading(2, Counters(), second), reading(3, Counters(), third, percent=50)
    )
    assert following(readings[1], readings[2]).candidate.ahead == {}


def test_a_time_in_which_a_metric_was_not_told_is_not_judged_by_it():
    """Neither during the silence, nor all at once after it."""
    told = refunds(declared(10, 0), declared(20, None), declared(30, 9), declared(40, 10))
    assert told == [(10, None), (10, None), (10, 1)]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1))
def test_never_more_events_than_requests_and_none_lost_while_there_are_requests(steps: list[tuple[int, int]]):
    requests, events, told = 0, 0, [declared(0, 0)]
    for more, bad in steps:
        requests, events = requests + more, events + bad
        told.append(declared(requests, events))
    windows = refunds(*told)
    assert all(count is not None and count <= answered for answered, count in windows)
    waiting = followed(*(reading(at_s, Counters(), each) for at_s, each in enumerate(told)))[-1].candidate.ahead
    assert sum(count or 0 for _, count in windows) + waiting.get("refunds", 0) == events


def followed(*readings: Reading) -> list[Reading]:
    found: list[Reading] = []
    for each in readings:
        found.append(following(found[-1] if found else None, each))
    return found


def test_a_predictor_that_is_late_is_made_up_for_by_its_next_answer():
    arms = (counters(10), silent({200: 15}), counters(30))
    readings = followed(*(reading(number, counters(1), arm) for number, arm in enumerate(arms)))
    assert readings[1].candidate.servers == arms[0].servers
    windows = [window_between(*pair) for pair in pairwise(readings)]
    assert [dict(window.candidate.latency) for window in windows] == [{}, {70: 20}]
    assert [window.candidate.requests for window in windows] == [5, 15]


def busy(ok: int, active: int) -> Counters:
    return counters(ok).model_copy(update={"active": active})


def test_answers_to_requests_of_an_earlier_split_say_nothing_about_this_one():
    readings = followed(
        reading(0, busy(100, 40), busy(10, 2), percent=5),
        reading(1, busy(100, 40), busy(10, 2), percent=50),  # 42 requests are still those of 5 %
        reading(2, busy(130, 30), busy(20, 8), percent=50),
        reading(3, busy(160, 20), busy(40, 9), percent=50),
        reading(4, busy(190, 20), busy(70, 9), percent=50),
    )
    assert [(each.stable.old, each.candidate.old) for each in readings] == [(40, 2), (40, 2), (10, 0), (0, 0), (0, 0)]
    assert [window_between(*pair).share for pair in pairwise(readings)] == [None, None, None, 0.5]


def test_no_more_requests_are_old_than_there_are():
    readings = followed(
        reading(0, counters(0), counters(0), percent=5),
        reading(1, busy(0, 9), busy(0, 5), percent=50),
        reading(2, busy(2, 3), busy(0, 0), percent=50),
    )
    assert [each.stable.old for each in readings] == [0, 9, 3]
    assert [each.candidate.old for each in readings] == [0, 5, 0]


growth = st.fixed_dictionaries(
    {
        "codes": st.dictionaries(st.sampled_from((200, 201, 400, 422, 500, 503)), st.integers(0, 50)),
        "latency": st.dictionaries(st.integers(0, 5), st.integers(0, 50)),
        "score": st.dictionaries(st.integers(0, 5), st.integers(0, 50)),
        "silent": st.booleans(),
    }
)


@settings(max_examples=80, deadline=None)
@given(steps=st.lists(growth, min_size=1, max_size=12), data=st.data())
def test_however_counts_are_cut_into_windows_they_sum_to_the_same(steps, data):
    told = {name: Counter[int]() for name in ("codes", "latency", "score")}
    now = Counters(servers={0: ServerCounts(boot="a")})
    truth, readings = [now], [reading(0, now, now)]
    for number, step in enumerate(steps, start=1):
        for name, counted in told.items():
            counted.update(step[name])
        server = ServerCounts(boot="a", latency=dict(told["latency"]), score=dict(told["score"]))
        whole = Counters(codes=dict(told["codes"]), servers={0: server})
        truth.append(whole)
        seen = silent(dict(whole.codes)) if step["silent"] and number < len(steps) else whole
        readings.append(following(readings[-1], reading(number, seen, seen)))
    kept = sorted(data.draw(st.sets(st.integers(1, len(steps) - 1))) if len(steps) > 1 else [])
    cut = [readings[0], *(readings[number] for number in kept), readings[-1]]
    windows = [window_between(*pair) for pair in pairwise(cut)]
    whole = window_between(reading(0, truth[0], truth[0]), reading(len(steps), truth[-1], truth[-1])).stable
    assert timeline.total(windows, timeline.Arm.STABLE) == timeline.total(
        [window_between(cut[0], cut[-1])], timeline.Arm.STABLE
    )
    assert sum(window.stable.requests for window in windows) == whole.requests
    for name in ("errors", "rejected"):
        assert sum(window.stable.events[name] for window in windows) == whole.events[name]
    for name in ("latency", "score"):
        summed = Counter[int]()
        for window in windows:
            counts = getattr(window.stable, name)
            assert all(count > 0 for count in counts.values())
            summed.update(counts)
        assert summed == getattr(whole, name)


def test_a_window_comes_back_from_its_document():
    window = window_between(reading(1.0, counters(1), counters(1)), reading(1.5, counters(6, 5), counters(8)))
    assert timeline.from_document(to_document(window)) == window
