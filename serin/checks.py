"""What a candidate must show at 0 % traffic: recorded requests, answered by both revisions side by side.

Most bad candidates end here, before any user meets them.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, pstdev
from typing import Final

import aiohttp

from serin import address
from serin.model import Record
from serin.rollout.document import Check

MAX_RECORDS: Final = 200
MAX_ANSWER_BYTES: Final = 1 << 16
"""A longer answer to one record is none that counts: a candidate's bytes are not ours to hold."""
TOTAL_S: Final = 60.0
"""For all records together, so that a candidate that drips its answers holds nobody up."""
MAX_ERROR: Final = 160
PARITY: Final = 1e-4
"""Largest difference between a served score and the one training recorded: float32 on another machine."""
SLOWER: Final = 2.0
SLOWER_AT_LEAST_S: Final = 0.005
"""A median latency must exceed stable's by this factor and by this time to count against a candidate: on an idle
revision the first few milliseconds are noise."""
COLLAPSE: Final = 0.1
"""Scores collapsed when their spread is below this share of the spread of stable's."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`status` is None when no answer came; `score` is None unless the answer carried a finite probability. `error`:
    what the model server said is wrong with the record."""

    status: int | None
    latency_s: float
    score: float | None
    error: str | None = None

    @property
    def good(self) -> bool:
        return self.status is not None and 200 <= self.status < 300 and self.score is not None


async def replay(
    candidate: str,
    stable: str | None,
    model_name: str,
    records: Sequence[Record],
    *,
    timeout_s: float = 10,
    total_s: float = TOTAL_S,
) -> tuple[list[Answer], list[Answer] | None]:
    """Send each record to both addresses (`serin.address`) in turn. Connection failures are answers too (status
    None), as is the record that was being answered when `total_s` were over; no other is asked then."""
    of_candidate: list[Answer] = []
    of_stable: list[Answer] = []
    end_s = time.monotonic() + total_s
    async with (
        address.session(candidate, timeout_s=timeout_s) as to_candidate,
        address.session(stable or candidate, timeout_s=timeout_s) as to_stable,
    ):
        for record in records[:MAX_RECORDS]:
            of_candidate.append(await ask(to_candidate, model_name, record))
            if stable is not None:
                of_stable.append(await ask(to_stable, model_name, record))
            if time.monotonic() > end_s:
                of_candidate[-1] = Answer(None, of_candidate[-1].latency_s, None, "the time for all records was over")
                break
            if sum(not answer.good for answer in of_candidate) > MAX_RECORDS // 10:
                break
    return of_candidate, of_stable if stable is not None else None


async def ask(session: aiohttp.ClientSession, model_name: str, record: Record) -> Answer:
    start = time.perf_counter()
    try:
        async with session.post(f"/v1/models/{model_name}:predict", json={"instances": [record]}) as response:
            body = await address.read_json(response, MAX_ANSWER_BYTES)
            return Answer(response.status, time.perf_counter() - start, _score(body), _error(body))
    except (TimeoutError, aiohttp.ClientError, ValueError) as error:
        return Answer(None, time.perf_counter() - start, None, type(error).__name__)


def _error(body: object) -> str | None:
    said = body.get("error") if isinstance(body, dict) else None
    return said[:MAX_ERROR] if isinstance(said, str) else None


def _score(body: object) -> float | None:
    try:
        score = float(body["predictions"][0]["probability"])  # type: ignore[index]
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    return score if math.isfinite(score) and 0 <= score <= 1 else None


def compare(
    candidate: Sequence[Answer], stable: Sequence[Answer] | None, recorded: Sequence[float] | None
) -> tuple[Check, ...]:
    """The verdict on answers to the same records, in the same order.

    `recorded`: the scores training wrote down for those records, None when the model brought none.
    """
    checks = [_answers(candidate, stable)]
    scores = [answer.score for answer in candidate if answer.score is not None]
    if recorded is not None:
        checks.append(_parity(candidate, recorded))
    if stable is not None:
        times_s = [[answer.latency_s for answer in answers if answer.good] for answers in (candidate, stable)]
        checks.append(latency(*times_s))
        checks.append(_spread(scores, [answer.score for answer in stable if answer.score is not None]))
    return tuple(checks)


def accepted(candidate: Sequence[Answer], stable: Sequence[Answer]) -> Check:
    """Whether the candidate answers what clients send today: the requests that stable answers."""
    answered = [ours for ours, theirs in zip(candidate, stable, strict=False) if theirs.good]
    refused = [answer for answer in answered if not answer.good]
    detail = f"{len(answered) - len(refused)} of {len(answered)} requests answered by stable were also answered"
    if refused:
        said = refused[0].error or f"status {refused[0].status}" if refused[0].status else "no answer"
        detail += f"; the first failure: {said}"
    return Check(name="requests", passed=not refused, detail=detail)


def _answers(candidate: Sequence[Answer], stable: Sequence[Answer] | None) -> Check:
    bad = sum(not answer.good for answer in candidate)
    bad_stable = sum(not answer.good for answer in stable) if stable is not None else 0
    detail = f"{bad} of {len(candidate)} requests without a valid answer"
    if stable is not None:
        detail += f" (stable: {bad_stable} of {len(stable)})"
    return Check(name="answers", passed=len(candidate) > 0 and bad == 0, detail=detail)


def _parity(candidate: Sequence[Answer], recorded: Sequence[float]) -> Check:
    differences = [
        abs(answer.score - score)
        for answer, score in zip(candidate, recorded, strict=False)
        if answer.score is not None
    ]
    if not differences:
        return Check(name="parity", passed=False, detail="no scores to compare with those in training")
    worst = max(differences)
    if worst > PARITY:
        detail = f"served scores differ from those in training by up to {worst:.2g} (limit {PARITY:g})"
    else:
        detail = f"served scores match those in training (largest difference {worst:.2g})"
    return Check(name="parity", passed=worst <= PARITY, detail=detail)


def latency(candidate_s: Sequence[float], stable_s: Sequence[float]) -> Check:
    """The verdict on the times that good answers took, in seconds."""
    if not candidate_s or not stable_s:
        return Check(name="latency", passed=bool(candidate_s), detail="no answers to compare")
    slow, base = median(candidate_s), median(stable_s)
    passed = slow <= SLOWER * base or slow - base <= SLOWER_AT_LEAST_S
    return Check(
        name="latency",
        passed=passed,
        detail=f"{'' if passed else 'too slow: '}median {slow * 1000:.1f} ms, stable {base * 1000:.1f} ms",
    )


def _spread(candidate: Sequence[float], stable: Sequence[float]) -> Check:
    if len(candidate) < 2 or len(stable) < 2:
        return Check(name="scores", passed=len(candidate) >= 2, detail="too few scores to compare")
    ours, theirs = pstdev(candidate), pstdev(stable)
    return Check(
        name="scores",
        passed=ours >= COLLAPSE * theirs,
        detail=f"spread {ours:.3f}, stable {theirs:.3f}",
    )
