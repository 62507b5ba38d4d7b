"""The judge's e-values and confidence sequences against an independent library, `ville`.

It knows one kind of stream, binary and with a constant null, and mixes over a Beta prior. Given that an event
happened, which arm it hit is such a stream while the split stays the same. The same mixture built from the judge's
bets, by Gauss-Legendre quadrature over the alternatives, must be the same e-process.
"""

import numpy as np
import pytest
import ville
from scipy.special import logsumexp

from serin.judge import confidence, decide, observe
from serin.judge.primitive import Bet, Bets, OneSampleBets
from tests.unit.judging import arm, taught, window

NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(160)
ALTERNATIVES, PRIOR = (NODES + 1) / 2, NODE_WEIGHTS / 2
"""A uniform prior: exact for up to 319 events."""


def events(seed: int, share: float, ratio: float, count: int = 300) -> np.ndarray:
    """1 where an event hit the candidate, whose rate is `ratio` times stable's."""
    odds = ratio * share
    return np.random.default_rng(seed).binomial(1, odds / (odds + 1 - share), count).astype(float)


def mixed(log_e: list[np.ndarray]) -> np.ndarray:
    """Log of the mixture's wealth after each event, of the bets' log e-values at each."""
    return logsumexp(np.cumsum(log_e, axis=0), b=PRIOR, axis=1)


@pytest.mark.parametrize(("share", "rho", "ratio"), [(0.05, 1.0, 1.0), (0.05, 1.05, 4.0), (0.5, 2.0, 0.7)])
def test_bets_on_the_event_share_make_the_beta_binomial_e_process(share: float, rho: float, ratio: float) -> None:
    null = rho * share / (rho * share + 1 - share)
    risks = ALTERNATIVES / (1 - ALTERNATIVES) * (1 - null) / null
    bets = Bets.of([Bet({0: risk}, rho) for risk in risks.tolist()])
    hits = events(1, share, ratio)
    ours = mixed([bets.log_e(np.array([hit]), np.ones(1), share) for hit in hits])
    assert ours == pytest.approx(ville.BernoulliTest(p0=null).fit(hits).log_e_values_, abs=1e-8)


def test_bets_on_the_candidates_rate_make_the_beta_binomial_e_process() -> None:
    limit = 0.01
    bets = OneSampleBets.of([(0, rate, limit) for rate in ALTERNATIVES.tolist()])
    hits = np.random.default_rng(2).binomial(1, 0.03, 300).astype(float)
    ours = mixed([bets.log_e(np.array([hit]), 1) for hit in hits])
    assert ours == pytest.approx(ville.BernoulliTest(p0=limit).fit(hits).log_e_values_, abs=1e-8)


@pytest.mark.parametrize(("share", "ratio"), [(0.05, 1.0), (0.25, 3.0), (0.5, 0.5)])
def test_the_interval_of_the_ratio_is_about_theirs(share: float, ratio: float) -> None:
    """Both mixtures are valid; they differ in the prior, so the bounds differ by less than a quarter."""
    hits = events(3, share, ratio, 2000)
    theirs = ville.BernoulliCS(alpha=0.01, intersect=False).fit(hits)
    state, ours, both = taught(), int(hits.sum()), len(hits)
    requests = round(100_000 * share)
    found = confidence(
        observe(state, window(1, arm(100_000 - requests, both - ours), arm(requests, ours), share=share))
    )["errors"]
    for bound, share_bound in ((found.low, theirs.lower_[-1]), (found.high, theirs.upper_[-1])):
        assert bound is not None
        assert bound == pytest.approx(share_bound / (1 - share_bound) * (1 - share) / share, rel=0.25)
    assert found.low < ratio < found.high


def test_metrics_are_merged_as_they_merge_them() -> None:
    state = observe(taught(), window(1, arm(9500, 90), arm(500, 30)))
    by_metric, _ = state.book.evidence(state.harm, state.cash)
    merged = ville.evalues.combine(by_metric, weights=list(state.policy.shares.values()))
    assert decide(state, 2.0).log10_e == pytest.approx(np.log10(merged), abs=1e-12)
