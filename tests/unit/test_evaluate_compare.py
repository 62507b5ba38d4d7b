"""The comparison of two models on the same rows: its intervals, its checks, and the verdict they give."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.config import Costs, Gate
from components.evaluate.compare import Comparison, Groups, Scored, comparable, compare
from components.evaluate.evaluation import Check, Difference, Verdict
from components.evaluate.metrics import log_losses
from components.evaluate.verdict import against_champion

GATE = Gate(resamples=400)


def scored(p: np.ndarray, threshold: float = 0.5) -> Scored:
    return Scored(p, p >= threshold)


def rows(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and the log-odds they were drawn from."""
    rng = np.random.default_rng(seed)
    log_odds = rng.normal(0, 1.5, count)
    return (rng.random(count) < expit(log_odds)).astype(np.int64), log_odds


def expit(log_odds: np.ndarray) -> np.ndarray:
    p: np.ndarray = 1 / (1 + np.exp(-log_odds))
    return p


def judged(y: np.ndarray, challenger: Scored, champion: Scored, groups: Groups | None = None) -> tuple[Verdict, str]:
    comparison = compared(y, challenger, champion, groups)
    return against_champion("new", "old", comparison.differences[0], comparison.checks)


def compared(
    y: np.ndarray, challenger: Scored, champion: Scored, groups: Groups | None = None, gate: Gate = GATE
) -> Comparison:
    return compare(y, challenger, champion, groups or {}, costs=Costs(false_negative=3), gate=gate, seed=1)


def found(comparison: Comparison, name: str) -> Check:
    return next(check for check in comparison.checks if check.name == name)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 2), st.floats(-1, 1), st.integers(60, 400), st.booleans())
def test_swapping_the_sides_swaps_the_verdict(
    seed: int, noise: float, shift: float, count: int, grouped: bool
) -> None:
    y, log_odds = rows(count, seed)
    rng = np.random.default_rng(seed + 1)
    one, other = scored(expit(log_odds)), scored(expit(log_odds + rng.normal(0, noise, count) + shift))
    north = rng.random(count) < 0.5
    groups = {"region": {"north": north, "south": ~north}} if grouped else {}
    there, back = compared(y, one, other, groups), compared(y, other, one, groups)
    for a, b in zip(there.differences, back.differences, strict=True):
        assert (a.value, a.low, a.high) == pytest.approx((-b.value, -b.high, -b.low), abs=1e-9)
    verdicts = [judged(y, one, other, groups)[0], judged(y, other, one, groups)[0]]
    if Verdict.PROMOTE in verdicts:
        assert Verdict.REJECT in verdicts


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 300))
def test_a_model_against_itself_holds(seed: int, count: int) -> None:
    y, log_odds = rows(count, seed)
    side = scored(expit(log_odds))
    groups = {"half": {"a": np.arange(count) % 2 == 0, "b": np.arange(count) % 2 == 1}}
    assert judged(y, side, side, groups)[0] is Verdict.HOLD
    assert all(d.low == d.value == d.high == 0 for d in compared(y, side, side, groups).differences)


def test_clearly_better_is_promoted_and_clearly_worse_rejected() -> None:
    y, log_odds = rows(1500)
    blurred = log_odds + np.random.default_rng(9).normal(0, 1.5, 1500)
    better, worse = scored(expit(log_odds), 0.25), scored(expit(blurred), 0.25)
    assert judged(y, better, worse)[0] is Verdict.PROMOTE
    word, reason = judged(y, worse, better)
    assert word is Verdict.REJECT
    assert reason.startswith("new is worse than the champion (old), log loss +")


def test_intervals_are_those_of_the_mean() -> None:
    """The bootstrap of a mean of many rows meets the normal approximation."""
    y, log_odds = rows(2000)
    p = expit(log_odds + 0.3)
    (difference, *_) = compared(y, scored(p), scored(expit(log_odds)), gate=Gate(resamples=4000)).differences
    loss = log_losses(y, p) - log_losses(y, expit(log_odds))
    error = 1.96 * loss.std() / np.sqrt(2000)
    assert difference.value == pytest.approx(loss.mean())
    assert difference.low == pytest.approx(loss.mean() - error, abs=0.1 * error)
    assert difference.high == pytest.approx(loss.mean() + error, abs=0.1 * error)


def test_rows_are_resampled_in_pairs() -> None:
    """Two models that differ by a constant on every row: no doubt about the difference, whatever their losses."""
    y = np.array([0, 1] * 300)
    p = np.where(y == 1, 0.6, 0.4)
    difference = compared(y, scored(p), scored(np.where(y == 1, 0.5, 0.5))).differences[0]
    assert difference.high - difference.low < 1e-9
    assert difference.value < 0


def test_better_log_loss_at_a_much_higher_cost_is_not_promoted() -> None:
    y, log_odds = rows(3000)
    blurred = log_odds + np.random.default_rng(9).normal(0, 1.0, 3000)
    worse = scored(expit(blurred), 0.25)
    word, reason = judged(y, scored(expit(log_odds), 0.95), worse)
    assert word is Verdict.REJECT
    assert "cost" in reason
    y, blurred, log_odds = y[:500], blurred[:500], log_odds[:500]
    word, reason = judged(y, scored(expit(log_odds), 0.42), scored(expit(blurred), 0.25))
    assert word is Verdict.HOLD
    assert "harm is not ruled out: cost" in reason


def test_harm_to_a_group_rejects_a_model_that_is_better_overall() -> None:
    y, log_odds = rows(4000)
    rng = np.random.default_rng(9)
    south = np.arange(4000) % 10 == 0
    groups = {"region": {"north": ~south, "south": south}}
    champion = expit(log_odds + rng.normal(0, 1.5, 4000))
    fair, unfair = expit(log_odds), np.where(south, expit(-log_odds), expit(log_odds))
    assert judged(y, scored(fair, 0.25), scored(champion, 0.25), groups)[0] is Verdict.PROMOTE
    comparison = compared(y, scored(unfair, 0.25), scored(champion, 0.25), groups)
    assert comparison.checks[0].passed
    assert found(comparison, "log_loss[region=south]").broken
    assert not found(comparison, "log_loss[region=north]").broken
    assert judged(y, scored(unfair, 0.25), scored(champion, 0.25), groups)[0] is Verdict.REJECT


def test_a_gap_that_opens_between_groups_rejects() -> None:
    """The same scores, but decisions that follow the group: only the gaps can see it."""
    y, log_odds = rows(4000)
    south = np.arange(4000) % 2 == 0
    groups = {"region": {"north": ~south, "south": south}}
    champion = scored(expit(log_odds + np.random.default_rng(9).normal(0, 1.5, 4000)), 0.25)
    p = expit(log_odds)
    comparison = compared(y, Scored(p, p >= np.where(south, 0.6, 0.15)), champion, groups)
    assert found(comparison, "selection_gap[region]").broken
    assert found(comparison, "true_positive_gap[region]").broken
    assert not found(comparison, "log_loss[region=south]").broken


def test_small_groups_are_not_checked() -> None:
    y, log_odds = rows(1500)
    few = np.arange(1500) < 60
    groups = {"region": {"few": few, "rest": ~few}}
    assert not comparable(y, few)
    unfair = np.where(few, expit(-log_odds), expit(log_odds))
    names = {check.name for check in compared(y, scored(unfair), scored(expit(log_odds)), groups).checks}
    assert names == {"log_loss", "cost", "log_loss[region=rest]"}


def test_a_group_needs_both_classes() -> None:
    y = np.zeros(400, np.int64)
    y[:30] = 1
    assert comparable(y, np.ones(400, bool))
    assert not comparable(y, np.arange(400) >= 15)


def test_resampling_in_chunks_changes_no_totals(monkeypatch: pytest.MonkeyPatch) -> None:
    y, log_odds = rows(200)
    whole = compared(y, scored(expit(log_odds)), scored(np.full(200, 0.5)))
    monkeypatch.setattr("components.evaluate.compare._CELLS", 200 * 7)
    assert compared(y, scored(expit(log_odds)), scored(np.full(200, 0.5))) == whole


def test_first_check_decides_and_guards_stand_in_the_way() -> None:
    def check(name: str, *, passed: bool, broken: bool = False) -> Check:
        return Check(name=name, value=0, bound=0, direction="<=", passed=passed, broken=broken)

    better, same = check("log_loss", passed=True), check("log_loss", passed=False)
    fine, unproven, broken = (
        check("cost", passed=True),
        check("cost", passed=False),
        check("cost", passed=False, broken=True),
    )
    loss = Difference(metric="log_loss", value=-0.1, low=-0.2, high=-0.05)
    for checks, verdict in (
        ([better, fine], Verdict.PROMOTE),
        ([better, unproven], Verdict.HOLD),
        ([better, broken], Verdict.REJECT),
        ([same, fine], Verdict.HOLD),
        ([same, broken], Verdict.REJECT),
        ([check("log_loss", passed=False, broken=True), fine], Verdict.REJECT),
    ):
        assert against_champion("new", "old", loss, checks)[0] is verdict
