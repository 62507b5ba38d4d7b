"""A Prometheus range export as windows: the JSON answer of /api/v1/query_range, with raw counters."""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from serin.errors import UserError
from serin.judge.state import BEFORE
from serin.judge.window import Window
from serin.measure.prometheus import KNOWN, Answers, Names, Sample, counts, problem
from serin.measure.tally import Tally, add, counters
from serin.measure.windows import Reading, window_between

_THE_STAGE: Final = 0

Series = tuple[dict[str, str], list[tuple[float, float]]]
"""Labels, and times in UTC epoch seconds with values."""
Looks = Mapping[float, list[Sample]]
"""What was scraped, by time."""


def read(file: Path, stable: str, candidate: str) -> list[Window]:
    """The windows of two revisions between the export's times, all of one stage, from the candidate's first request.

    The export tells no split, so that the observed one is judged. A counter that fell was reset, and a time at which
    a process is missing that comes back later lies inside a longer window: nothing counts twice. Raises `UserError`.
    """
    series = _series(file)
    names, arms = _names(file, series), (stable, candidate)
    namespace = _namespace(file, {labels[names.revision] for labels, _ in series if names.revision in labels}, arms)
    ours = [each for each in series if _revision(each[0].get(names.revision, ""))[1] in arms]
    return list(_windows(list(_readings(file, _complete(ours), names, (namespace, *arms)))))


def _series(file: Path) -> list[Series]:
    try:
        answer: Any = json.loads(file.read_text(encoding="utf-8"))
        found = [
            (dict(each["metric"]), [(float(t), float(value)) for t, value in each["values"]])
            for each in answer["data"]["result"]
        ]
    except OSError as error:
        raise UserError(f"Export {file} cannot be read: {error.strerror}.") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"Export {file} is not an answer of Prometheus' query_range ({error!r}).") from error
    for labels, values in found:
        for t, value in values:
            if not math.isfinite(t) or value < 0 or value == math.inf:
                name = labels.get("__name__", "a counter")
                raise UserError(
                    f"Export {file}: {name} is {value:g} at {t:.15g}; export counters as they were scraped."
                )
    return found


def _names(file: Path, series: list[Series]) -> Names:
    for names in KNOWN:
        if any(_counts_requests(names, labels) for labels, _ in series):
            return names
    known = ", ".join(f"{names.requests} by {names.revision} and {names.code}" for names in KNOWN)
    raise UserError(f"Export {file} has no request counts by revision and status code; supported metrics: {known}.")


def _counts_requests(names: Names, labels: Mapping[str, str]) -> bool:
    """A series without a metric's name, as a join with target_info leaves it, is known by its labels."""
    return labels.get("__name__", names.requests) == names.requests and (
        {names.code, names.revision} <= labels.keys() and "le" not in labels
    )


def _namespace(file: Path, labels: set[str], arms: tuple[str, str]) -> str:
    """Of the revisions, empty where their label does not tell it."""
    found = [_revision(label) for label in sorted(labels)]
    there = {revision for _, revision in found}
    for revision in arms:
        if revision not in there:
            raise UserError(
                f"Export {file} has no counts for revision {revision}; it has {', '.join(sorted(there))}."
            )
    namespaces = {namespace for namespace, revision in found if revision in arms}
    if len(namespaces) > 1:
        raise UserError(f"Export {file} has these revisions in several namespaces: {', '.join(sorted(namespaces))}.")
    return namespaces.pop()


def _revision(label: str) -> tuple[str, str]:
    """Its namespace, if the label tells it, and its name."""
    namespace, _, revision = label.rpartition("/")
    return namespace, revision


def _complete(series: list[Series]) -> Looks:
    """The times at which every process is there that was there before and will be again."""
    looks: defaultdict[float, list[Sample]] = defaultdict(list)
    times: defaultdict[str, set[float]] = defaultdict(set)
    for labels, values in series:
        for t, value in values:
            if not math.isnan(value):
                sample = Sample(labels, value)
                looks[t].append(sample)
                times[sample.process].add(t)
    return {
        t: looks[t] for t in sorted(looks) if all(t in seen for seen in times.values() if min(seen) <= t <= max(seen))
    }


def _readings(file: Path, looks: Looks, names: Names, rollout: tuple[str, str, str]) -> Iterator[Reading]:
    tally = Tally()
    for number, (t, samples) in enumerate(looks.items()):
        requests = [each for each in samples if _counts_requests(names, each.labels)]
        buckets = [each for each in samples if each.labels.get("__name__") == names.latency]
        answers = Answers(names, [Sample({}, t)], requests, buckets)
        wrong = problem(answers, t)
        if wrong is not None:
            raise UserError(f"Export {file}: {wrong}.")
        if any(each.value != int(each.value) for each in requests):
            raise UserError(f"Export {file} has fractions of requests: export the counter itself, not its rate.")
        told = counts(answers, *rollout)
        if told is None:
            raise AssertionError("times were given")
        tally = add(tally, told.read)
        stable, candidate = (counters(tally, revision) for revision in rollout[1:])
        yield Reading(
            at_s=t, window_id=number, stage=_THE_STAGE, percent=0, gateway="", stable=stable, candidate=candidate
        )


def _windows(readings: list[Reading]) -> Iterator[Window]:
    stage = BEFORE
    for before, after in pairwise(readings):
        window = window_between(before, after)
        stage = _THE_STAGE if window.candidate.requests else stage
        yield replace(window, stage=stage, share=None)
