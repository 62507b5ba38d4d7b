"""The judge's memory: what a window adds by hand, that it survives a restart unchanged, and that it stays small."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from serin.errors import UserError
from serin.judge import ArmCounts, Policy, State, Window, decide, load, observe, start
from serin.judge.policy import EventMetric
from serin.judge.primitive import Bet, Bets
from serin.judge.state import BEFORE
from tests.unit.judging import arm, draw, taught, window


def restarted(state: State) -> State:
    return load(json.loads(json.dumps(state.dump())))


def traffic(seed: int, count: int) -> list[Window]:
    """A rollout through all stages with gaps, late shares, windows without a request, and restarts of bets."""
    rng = np.random.default_rng(seed)
    windows = [Window(0, -60, 0, BEFORE, 0.0, draw(rng, 90, {"errors": 0.02}), ArmCounts())]
    for k in range(1, count):
        requests = int(rng.integers(0, 80))
        ours = int(rng.binomial(requests, 0.3))
        rates = {"errors": 0.02, "rejected": 0.01}
        windows.append(
            Window(
                id=3 * k,
                start_s=20.0 * k,
                end_s=20.0 * k + 1,
                stage=min(4 * k // count, 3),
                share=None if k % 5 == 0 else 0.3,
                stable=draw(rng, requests - ours, rates),
                candidate=draw(rng, ours, rates),
            )
        )
    return windows


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.lists(st.booleans(), min_size=30, max_size=30))
def test_any_split_over_restarts_gives_the_same_bytes(seed: int, restarts: list[bool]) -> None:
    straight = split = start(Policy())
    for each, restart in zip(traffic(seed, 30), restarts, strict=True):
        straight, split = observe(straight, each), observe(split, each)
        if restart:
            split = restarted(split)
    assert json.dumps(split.dump()) == json.dumps(straight.dump())
    assert decide(split, 700.0) == decide(straight, 700.0)


def test_a_window_counts_once_however_often_it_comes() -> None:
    state = start(Policy())
    windows = traffic(3, 20)
    for each in windows:
        state = observe(state, each)
        assert observe(state, each) is state
    before = json.dumps(state.dump())
    for each in windows:
        state = observe(state, each)
    assert json.dumps(state.dump()) == before


def test_looking_changes_nothing() -> None:
    state = start(Policy())
    for each in traffic(4, 20):
        state = observe(state, each)
    before = json.dumps(state.dump())
    said = decide(state, 500.0)
    assert decide(state, 500.0) == said
    assert json.dumps(state.dump()) == before


def test_the_document_stays_small_with_every_metric_declared_and_every_bucket_full() -> None:
    metrics = tuple(EventMetric(name=f"user_metric_number_{k}", weight=0.1) for k in range(8))
    rates = {metric.name: 0.017 for metric in metrics} | {"errors": 0.01, "rejected": 0.01}
    state = start(Policy(metrics=metrics))
    rng = np.random.default_rng(5)
    everywhere = np.full(240, 1 / 240), np.full(100, 0.01)
    for k in range(40):
        arms = draw(rng, 3000, rates, *everywhere), draw(rng, 300, rates, *everywhere)
        state = observe(state, window(k, *arms, share=0.05 + (k % 21) / 100, stage=k // 10))
    assert len(json.dumps(state.dump())) <= 32_000


def test_a_document_of_another_version_is_refused_in_one_sentence() -> None:
    with pytest.raises(UserError, match="version 99"):
        load({**start(Policy()).dump(), "version": 99})


def test_a_document_whose_parts_do_not_fit_this_version_is_refused_in_one_sentence() -> None:
    whole = start(Policy()).dump()
    for part in (
        {"policy": {**whole["policy"], "newer": 1}},
        {"harm": [*whole["harm"], 0.1]},
        {"stage_counts": [[0.0], [0.0]]},
        {"silent": None},
    ):
        with pytest.raises(UserError, match=r"^The judge's state is from another version of serin; start a new"):
            load({**whole, **part})
    del whole["cash"]
    with pytest.raises(UserError, match="another version"):
        load(whole)


def test_a_version_that_adds_an_option_or_moves_a_default_is_no_change_of_the_policy() -> None:
    class Newer(Policy):
        novelty: float = 1.0
        doubt: float = 0.25

    assert Newer(alpha=0.02).hash() == Policy(alpha=0.02).hash()
    assert len({Policy().hash(), Policy(alpha=0.02).hash(), Newer(novelty=2.0).hash(), Newer(doubt=0.3).hash()}) == 4


@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
@pytest.mark.parametrize(("candidate", "both"), [(0, 0), (0, 7), (3, 5), (9, 9)])
@pytest.mark.parametrize(("risk", "rho"), [(2.0, 1.05), (100.0, 1.0), (0.2, 5.0)])
def test_a_bet_is_a_ratio_of_binomial_likelihoods(
    share: float, candidate: int, both: int, risk: float, rho: float
) -> None:
    null = rho * share / (rho * share + 1 - share)
    alternative = null * risk / (1 - null + null * risk)
    expected = binom.logpmf(candidate, both, alternative) - binom.logpmf(candidate, both, null)
    found = Bets.of([Bet({0: risk}, rho)]).log_e(np.array([candidate]), np.array([both]), share)
    assert found == pytest.approx([expected], abs=1e-9)


def test_the_evidence_of_two_windows_by_hand() -> None:
    """Errors 2 of 10 and then 1 of 10 on the candidate, 3 of 190 and 1 of 190 on stable; the second window after
    ten minutes, in which waiting wealth was invested."""
    policy = Policy()
    state = start(policy)
    state = observe(state, Window(1, 0.0, 1.0, 0, 0.05, arm(190, 3), arm(10, 2)))
    state = observe(state, Window(2, 600.0, 601.0, 0, 0.05, arm(190, 1), arm(10, 1)))

    null = 1.05 * 0.05 / (1.05 * 0.05 + 0.95)
    invested = 0.15 * (1 - math.exp(-600 / 2400))
    ratio = floor = 0.15 - invested
    for risk, weight in {1.4: 0.08, 1.9: 0.54, 4.5: 0.30, 15.0: 0.04, 100.0: 0.04}.items():
        first, second = (risk**x_c / (1 + null * (risk - 1)) ** x for x_c, x in ((2, 5), (1, 2)))
        ratio += weight * (0.85 * first + invested) * second
    for factor in (2, 5, 20, 100, 500):
        first, second = (factor**x * ((1 - factor * 0.001) / 0.999) ** (10 - x) if factor else 0 for x in (2, 1))
        floor += 0.2 * (0.85 * first + invested) * second

    said = decide(state, 601.0)
    errors = next(each for each in said.evidence if each.metric == "errors")
    assert 10**errors.log10_e == pytest.approx(min(ratio, floor), rel=1e-9)
    weights = policy.shares
    assert sum(weights.values()) == pytest.approx(1)
    whole = sum(weights[each.metric] * 10**each.log10_e for each in said.evidence if each.metric != "split")
    assert 10**said.log10_e == pytest.approx(whole)


def test_the_bets_of_every_process_start_with_the_whole_wealth() -> None:
    state = taught()
    assert state.book.evidence(state.harm, state.cash)[0] == pytest.approx(1)
    assert state.book.evidence(state.harm, state.cash)[1] == pytest.approx(1)
    assert state.book.claims is not None
    assert state.book.claims.evidence(state.claims) == pytest.approx(1)


def test_harm_goes_on_over_stages_and_claims_start_afresh() -> None:
    state = observe(taught(), window(1, arm(950, 10), arm(50, 4)))
    again = observe(state, window(2, arm(0), arm(0), stage=1))
    assert again.harm == pytest.approx(state.harm, abs=1e-4)
    assert again.claims.tolist() == again.book.claims.prior.tolist()


def test_bins_never_depend_on_the_window_they_count() -> None:
    """Stable's latencies of a window move the edges only after it: harm is the same with edges laid before."""
    rng = np.random.default_rng(6)
    state = taught()
    big = window(1, draw(rng, 9000, {"errors": 0.01}, latency=np.roll(np.eye(240)[100], 3)), draw(rng, 100, {}))
    after = observe(state, big)
    assert after.latency.edges.tolist() != state.latency.edges.tolist()
    own = state.book.categories.candidate @ state.book.categories.row.of(big.candidate)
    both = own + state.book.categories.stable @ state.book.categories.row.of(big.stable)
    expected = state.book.harm.grow(state.harm, state.book.harm.log_e(own, both, 100.0, 0.05))
    assert after.harm.tolist() == expected.tolist()
