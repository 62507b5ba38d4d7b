"""Labels that arrive later: windows of requests by the time of the request, once their labels are in.

In the order of their arrival labels must not be judged: when one arm's labels are slower, its early ones are missing
and a harmless candidate looks bad, or a bad one harmless. A cohort is all requests of a stretch of time; it counts
once, when it is mature, with the share of its own labelled requests. Judge the windows by a state of their own
(`start`), with the metric declared in `JudgeSpec.metrics`: labels usually come after the candidate has all traffic,
and then need stable to have kept some (a holdback).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from serin.judge.window import ArmCounts, Window


@dataclass(frozen=True, slots=True)
class Labels:
    """Of one arm's requests in a cohort: how many there were, how many have a label by now, and the harm of those:
    wrong decisions, or the sum of a cost of 0 to 1 each."""

    requests: int
    labelled: int
    harm: float


@dataclass(frozen=True, slots=True)
class Cohort:
    """`id` rises with time; `start_s`, `end_s` are UTC epoch seconds of the requests."""

    id: int
    start_s: float
    end_s: float
    stage: int
    stable: Labels
    candidate: Labels

    def mature(self, now: float, longest_delay_s: float, complete: float) -> bool:
        arms = (self.stable, self.candidate)
        return now - self.end_s >= longest_delay_s or all(arm.labelled >= complete * arm.requests for arm in arms)


def windows(
    cohorts: Iterable[Cohort], metric: str, now: float, *, longest_delay_s: float, complete: float = 1.0
) -> Iterator[Window]:
    """The windows of the mature cohorts, up to the first that is not.

    A cohort is mature when it is `longest_delay_s` old or when the part `complete` of each arm's labels is in. Below
    1, labels must not arrive sooner or later for being bad: what is missing would look like harm, or hide it.
    """
    for cohort in cohorts:
        if not cohort.mature(now, longest_delay_s, complete):
            return
        yield Window(
            id=cohort.id,
            start_s=cohort.start_s,
            end_s=cohort.end_s,
            stage=cohort.stage,
            share=None,
            stable=ArmCounts(cohort.stable.labelled, {metric: cohort.stable.harm}),
            candidate=ArmCounts(cohort.candidate.labelled, {metric: cohort.candidate.harm}),
        )
