"""What the judge says at a given time."""

import math
from dataclasses import replace

import numpy as np

from serin.judge import scores
from serin.judge.book import Claim
from serin.judge.categories import REQUESTS
from serin.judge.decision import Action, Decision, Evidence
from serin.judge.policy import BUILT_IN, ERRORS, LATENCY, SCORES, SPLIT, metric_name
from serin.judge.primitive import Floats
from serin.judge.state import BEFORE, SILENT, State, stage_policy
from serin.model.histograms import SCORE_STEP
from serin.text import duration


def decide(state: State, now: float) -> Decision:
    """`now`: UTC epoch seconds. The answer depends on `state` and `now` alone.

    A rollback stands once the evidence has reached 1 / alpha, whatever came after.
    """
    policy, book = state.policy, state.book
    by_metric, split_e = book.evidence(state.harm, state.cash)
    total = float(book.weights @ by_metric)
    unjudged = _unjudged(state)
    open_claims = {claim: needs for claim, needs in _open_claims(state).items() if claim.metric not in unjudged}
    decision = _act(state, now, total, by_metric, unjudged, open_claims)
    if policy.dry_run and state.stage != BEFORE:
        over = now - state.stage_start_s >= stage_policy(policy, state.stage).min_s
        decision = replace(
            decision,
            action=Action.ADVANCE if over else Action.WAIT,
            would=decision.action,
            reason=f"Dry run, would {decision.action}: {decision.reason}",
        )
    candidate, both = (state.earlier_counts + state.stage_counts)[:, REQUESTS]

    def judged(name: str) -> bool:
        return bool(state.compared) if name == SPLIT else name not in unjudged

    evidence = [
        Evidence(
            metric=name,
            log10_e=math.log10(e),
            judged=judged(name),
            safe=judged(name) and all(claim.metric != name for claim in open_claims),
            stable_requests=int(both - candidate),
            candidate_requests=int(candidate),
        )
        for name, e in zip((*book.metrics, SPLIT), (*by_metric.tolist(), split_e), strict=True)
    ]
    return replace(decision, log10_e=math.log10(total), evidence=tuple(evidence))


def _act(
    state: State, now: float, total: float, by_metric: Floats, unjudged: list[str], open_claims: dict[Claim, float]
) -> Decision:
    policy = state.policy

    def wait(reason: str, requests: float = 0, still_s: float = 0, alert: str | None = None) -> Decision:
        return Decision(
            Action.WAIT,
            reason,
            0.0,
            (),
            alert=alert,
            needs_requests=math.ceil(requests) if 0 < requests < math.inf else None,
            needs_s=still_s if 0 < still_s < math.inf else None,
        )

    if state.peak >= 1 / policy.alpha:
        blamed = state.blamed or ERRORS
        how = "harmful, slower than stable" if blamed == LATENCY else "harmful"
        reason = f"The candidate is {how}: {_counts(state, blamed)}."
        return Decision(Action.ROLLBACK, reason, 0.0, (), blamed=blamed)
    if state.split_peak >= 1 / policy.split_alpha:
        alert = f"The candidate does not get its planned traffic: {_counts(state, SPLIT)}."
        return wait(alert, alert=alert)
    if state.stage == BEFORE:
        return wait("No traffic has been split yet.")
    for name in policy.require:
        if name in unjudged:
            return wait(f"The policy requires {metric_name(name)}, which is not reported by both revisions.")
    stage = stage_policy(policy, state.stage)
    age_s = now - state.stage_start_s
    if open_claims:
        claim, requests = max(open_claims.items(), key=lambda item: item[1])
        one_sided = zip((LATENCY, SCORES), state.silent.max(axis=0) > SILENT, strict=True)
        if (claim.metric, True) in one_sided or claim.metric in _kept_silent(state):
            return wait(f"Harm is not ruled out yet: one revision is not reporting {metric_name(claim.metric)}.")
        rate = state.stage_counts[0, REQUESTS] / age_s if age_s > 0 else 0.0
        still_s = max(requests / rate if rate > 0 else math.inf, stage.min_s - age_s)
        reason = f"Not ruled out yet: {stage.margin:g} times stable's rate of {claim.what}."
        if math.isfinite(still_s):
            reason = (
                f"{reason[:-1]}; needs about {requests:,.0f} more candidate requests, {duration(math.ceil(still_s))}."
            )
        return wait(reason, requests, still_s)
    if total >= policy.suspicion:
        worst = state.book.metrics[int(np.argmax(state.book.weights * by_metric))]
        return wait(f"The candidate looks {_worse(worst)}, but this is not proven: {_counts(state, worst)}.")
    judged = np.array([name not in unjudged for name in state.book.metrics])
    kept = np.where(judged, state.book.kept(state.harm, policy.start_share), 0.0)
    if float(kept.max()) >= policy.doubt and age_s < policy.patience * stage.min_s:
        worst = state.book.metrics[int(np.argmax(kept))]
        return wait(f"Extending the stage, as the candidate may be {_worse(worst)}: {_counts(state, worst)}.")
    if age_s < stage.min_s:
        return wait(
            f"No sign of harm; the stage lasts another {duration(math.ceil(stage.min_s - age_s))}.",
            0,
            stage.min_s - age_s,
        )
    found = "No harm found" if stage.margin is None else f"Harm of {stage.margin:g} times or more is ruled out"
    besides = f"; not judged: {', '.join(map(metric_name, unjudged))}" if unjudged else ""
    return Decision(Action.ADVANCE, f"{found}{besides}.", 0.0, ())


def _unjudged(state: State) -> list[str]:
    """Metrics that one of the arms does not report. Whoever counts requests counts errors."""
    categories = state.book.categories
    measured = slice(categories.measured, categories.latency)
    candidate, both = (state.earlier_counts + state.stage_counts)[:, measured]
    seen = (candidate > 0) & (candidate < both)
    return [name for name, judged in zip(state.book.metrics, seen, strict=True) if not judged and name != ERRORS]


def _kept_silent(state: State) -> list[str]:
    """Declared metrics that one of the arms has not reported in this stage, while both answered requests."""
    categories = state.book.categories
    candidate, both = state.stage_counts
    if min(candidate[REQUESTS], both[REQUESTS] - candidate[REQUESTS]) <= SILENT:
        return []
    names = categories.row.events[BUILT_IN:]
    first = categories.measured + BUILT_IN
    measured = slice(first, first + len(names))
    told = np.minimum(candidate[measured], (both - candidate)[measured])
    return [name for name, windows in zip(names, told, strict=True) if windows == 0]


def _open_claims(state: State) -> dict[Claim, float]:
    """The claims not yet shown, with the candidate requests they still need if the candidate is as good as stable."""
    portfolio = state.book.claims
    if portfolio is None:
        return {}
    goal = 1 / state.policy.beta
    needs = np.full(portfolio.processes, np.inf)
    candidate, both = state.stage_counts
    if 0 < candidate[REQUESTS] < both[REQUESTS]:
        per_request = (both + 0.5) / (both[REQUESTS] + 1)
        needs = portfolio.requests_needed(state.claims, goal, per_request, candidate[REQUESTS] / both[REQUESTS])
    shown = portfolio.evidence(state.claims) >= goal
    return {claim: float(needs[k]) for k, claim in enumerate(state.book.claimed) if not shown[k]}


def _counts(state: State, metric: str) -> str:
    """What was counted on each arm, for people."""
    candidate, both = state.earlier_counts + state.stage_counts
    stable = both - candidate
    if metric == SPLIT:
        return f"{candidate[REQUESTS]:,.0f} of {both[REQUESTS]:,.0f} requests"
    if metric == SCORES:
        return _gathered(state, candidate, stable)
    claims = [claim for claim in state.book.claimed if claim.metric == metric]
    claim = max(claims, key=lambda claim: candidate[claim.category] / (stable[claim.category] + 1))
    return (
        f"{claim.what} in {candidate[claim.category]:,.0f} of {candidate[REQUESTS]:,.0f} requests on the candidate, "
        f"in {stable[claim.category]:,.0f} of {stable[REQUESTS]:,.0f} on stable"
    )


def _worse(metric: str) -> str:
    return "slower than stable" if metric == LATENCY else "worse"


def _gathered(state: State, candidate: Floats, stable: Floats) -> str:
    """Of the bins of scores, the one in which the candidate's share differs most from stable's."""
    bins = slice(state.book.categories.score, state.book.categories.score + scores.BINS)
    ours, theirs = candidate[bins], stable[bins]
    parts = [counts / max(counts.sum(), 1) for counts in (ours, theirs)]
    k = int(np.argmax(np.abs(parts[0] - parts[1])))
    bounds = [0.0, *((state.score.edges + 1) * SCORE_STEP).tolist(), 1.0]
    ours_percent, theirs_percent = 100 * parts[0][k], 100 * parts[1][k]
    return (
        f"scores from {bounds[k]:.2f} to {bounds[k + 1]:.2f} in {ours_percent:.0f} % of {ours.sum():,.0f} on the "
        f"candidate, in {theirs_percent:.0f} % of {theirs.sum():,.0f} on stable"
    )
