"""The judge: a fold over windows, `start` and `observe`, and what it says, `decide`."""

import math

import numpy as np

from serin.judge import latency, scores
from serin.judge.book import Book
from serin.judge.categories import EVENTS, LATENCY_BUCKETS, REQUESTS, SCORE_BUCKETS
from serin.judge.policy import BUILT_IN, Policy
from serin.judge.primitive import Floats
from serin.judge.reference import Reference
from serin.judge.state import BEFORE, SILENT, State, stage_policy
from serin.judge.window import Window


def start(policy: Policy) -> State:
    latencies = Reference.empty(LATENCY_BUCKETS, latency.QUANTILES)
    score_values = Reference.empty(SCORE_BUCKETS, scores.QUANTILES)
    book = Book.of(policy, stage_policy(policy, BEFORE).margin, latencies, score_values)
    nothing = np.zeros((2, book.categories.count))
    return State(
        policy=policy,
        book=book,
        last_id=-1,
        stage=BEFORE,
        stage_start_s=0.0,
        invested_until_s=None,
        cash=1 - policy.start_share,
        harm=policy.start_share * book.harm.prior,
        claims=np.zeros(0) if book.claims is None else book.claims.prior,
        latency=latencies,
        score=score_values,
        stage_counts=nothing,
        earlier_counts=nothing,
        compared={},
        peak=1.0,
        blamed=None,
        split_peak=1.0,
        silent=np.zeros((2, 2)),
    )


def observe(state: State, window: Window) -> State:
    """Add one window. A window whose id is not above the last one's changes nothing.

    A window of stage -1, from before the rollout, only teaches how stable's latencies and scores are distributed.
    """
    row = state.book.categories.row
    return add(state, window, row.of(window.stable), row.of(window.candidate))


def add(state: State, window: Window, stable: Floats, candidate: Floats) -> State:
    """`observe` with the counts of each arm as rows of numbers; those in the window itself are not looked at."""
    if window.id <= state.last_id:
        return state
    policy, book = state.policy, state.book
    stage_start_s, invested_until_s, cash = state.stage_start_s, state.invested_until_s, state.cash
    harm, claims, peak, blamed, split_peak = state.harm, state.claims, state.peak, state.blamed, state.split_peak
    silent = state.silent
    stage_counts, earlier_counts, compared = state.stage_counts, state.earlier_counts, state.compared

    if window.stage != state.stage:
        stage_start_s = window.start_s
        book = Book.of(policy, stage_policy(policy, window.stage).margin, state.latency, state.score)
        claims = np.zeros(0) if book.claims is None else book.claims.prior
        earlier_counts, stage_counts = earlier_counts + stage_counts, np.zeros_like(stage_counts)

    if window.stage != BEFORE:
        # Invested for the time up to this window, never for what it holds: bets are placed before the game.
        waited_s = 0.0 if invested_until_s is None else max(0.0, window.start_s - invested_until_s)
        invested_until_s = window.start_s if invested_until_s is None else invested_until_s + waited_s
        invested = cash * -math.expm1(-waited_s / policy.restart_s)
        cash -= invested

        ours = book.categories.candidate @ candidate
        both = ours + book.categories.stable @ stable
        counts = np.stack((ours, both))
        stage_counts = stage_counts + counts
        share = None if window.counted_apart else window.share
        if share is not None:
            counts = counts[:, : book.categories.measured]
            compared = {**compared, share: compared.get(share, 0.0) + counts}
        requests = ours[REQUESTS]
        if share is None:
            share = requests / both[REQUESTS] if both[REQUESTS] else 0.0
            ours[REQUESTS] = both[REQUESTS] = 0  # the observed share says nothing about itself
        log_e = book.harm.log_e(ours, both, requests, share)
        answered = [[arm[REQUESTS] - arm[EVENTS : EVENTS + 2].sum()] for arm in (candidate, stable)]
        measured = np.stack((ours, both - ours))[:, book.categories.latency - 2 : book.categories.latency]
        silent = np.where(measured > 0, 0.0, silent + answered)
        # One revision's values alone are evidence of nothing, neither harm nor safety. Less wealth is always valid.
        one_sided = silent.max(axis=0) > SILENT
        if one_sided.any():
            log_e = np.where(book.harm_about(one_sided), np.minimum(log_e, 0.0), log_e)
        unreported = _unreported(book, stable, candidate)
        if unreported:
            log_e = np.where(book.harm_of_events(unreported), np.minimum(log_e, 0.0), log_e)
        harm = book.harm.grow(harm + invested * book.harm.prior, log_e)
        if book.claims is not None:
            log_e = book.claims.log_e(ours, both, requests, share)
            if one_sided.any():
                log_e = np.where(book.claims_about(one_sided)[book.claims.process], np.minimum(log_e, 0.0), log_e)
            if unreported:
                log_e = np.where(book.claims_of_events(unreported), np.minimum(log_e, 0.0), log_e)
            claims = book.claims.grow(claims, log_e)
        by_metric, split_e = book.evidence(harm, cash)
        total = float(book.weights @ by_metric)
        if total > peak:
            peak, blamed = total, book.metrics[int(np.argmax(book.weights * by_metric))]
        split_peak = max(split_peak, split_e)

    latencies = state.latency.learn(stable[book.categories.row.latency], latency.QUANTILES)
    score_values = state.score.learn(stable[book.categories.row.score], scores.QUANTILES)
    if latencies.edges is not state.latency.edges or score_values.edges is not state.score.edges:
        book = Book.of(policy, stage_policy(policy, window.stage).margin, latencies, score_values)
    return State(
        policy=policy,
        book=book,
        last_id=window.id,
        stage=window.stage,
        stage_start_s=stage_start_s,
        invested_until_s=invested_until_s,
        cash=cash,
        harm=harm,
        claims=claims,
        latency=latencies,
        score=score_values,
        stage_counts=stage_counts,
        earlier_counts=earlier_counts,
        compared=compared,
        peak=peak,
        blamed=blamed,
        split_peak=split_peak,
        silent=silent,
    )


def _unreported(book: Book, stable: Floats, candidate: Floats) -> list[str]:
    """Declared metrics that a revision with requests did not report in this window."""
    row = book.categories.row
    return [
        name
        for k, name in enumerate(row.events)
        if k >= BUILT_IN and any(arm[REQUESTS] > 0 and not arm[row.reported + k] for arm in (stable, candidate))
    ]
