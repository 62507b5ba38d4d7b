"""Events of declared metrics, from a model server's text."""

import hypothesis.strategies as st
import pytest
from hypothesis import given
from prometheus_client import CollectorRegistry, Counter, generate_latest

from serin.judge.policy import Source
from serin.measure import events

TEXT = """\
# HELP refunds_total Refunds.
# TYPE refunds_total counter
refunds_total{kind="full",shop="a b"} 3.0
refunds_total{kind="part",shop="a b"} 4.5
refunds_total{kind="full",shop="c{}\\"d"} 5.0
refunds_total_more 100.0
refunds_created{kind="full"} 1.7e9
process_start_time_seconds 12.5
"""


@pytest.mark.parametrize(
    ("labels", "count"),
    [({}, 12.5), ({"kind": "full"}, 8), ({"kind": "full", "shop": 'c{}"d'}, 5), ({"kind": "none"}, 0)],
)
def test_a_counter_is_summed_over_the_label_sets_that_match(labels, count):
    assert events.parse(TEXT, {"refunds": Source(counter="refunds_total", labels=labels)}) == {"refunds": count}


def test_a_counter_that_is_not_there_is_not_taken_for_zero():
    assert events.parse(TEXT, {"refunds": Source(counter="refunds")}) == {}
    assert events.parse("", {"refunds": Source(counter="refunds_total")}) == {}


def test_a_counter_whose_labels_were_never_used_is_zero():
    registry = CollectorRegistry()
    Counter("refunds", "Refunds.", ["kind"], registry=registry)
    text = generate_latest(registry).decode()
    assert events.parse(text, {"refunds": Source(counter="refunds_total")}) == {"refunds": 0}


@pytest.mark.parametrize("value", ["NaN", "-1", "+Inf", "1e300", "many"])
def test_what_is_no_count_is_refused(value):
    with pytest.raises(ValueError):
        events.parse(f"refunds_total {value}\n", {"refunds": Source(counter="refunds_total")})


@pytest.mark.parametrize(
    "text",
    [
        "refunds_total{" + ",".join(f'l{number}="v"' for number in range(60_000)) + "} 1\n",
        "".join(f'refunds_total{{kind="{number}"}} 1\n' for number in range(60_000)),
    ],
    ids=["long", "many"],
)
def test_who_floods_is_not_read(text):
    """The parser takes seconds for them."""
    with pytest.raises(ValueError, match="more label sets"):
        events.parse(text, {"refunds": Source(counter="refunds_total")})


@given(st.text(alphabet='{}="\\ ,#ax1.e-\n\t\0é', max_size=20))
def test_whatever_is_told_is_a_count_or_refused(rest):
    for text in (f"x{rest}", f"# TYPE x{rest}", f"process_start_time_seconds{rest}"):
        try:
            found = events.parse(text, {"x": Source(counter="x", labels={"a": "1"})})
            assert all(0 <= count < float("inf") for count in found.values())
            events.process(text)
        except ValueError:
            pass


def test_a_process_is_known_by_its_start():
    assert (events.process(TEXT), events.process("")) == ("12.5", "")
