"""Of one service, only one rollout acts at a time."""

from collections import defaultdict
from collections.abc import Sequence

from serin.rollout.document import Concurrency, ModelRollout, Phase


def active_rollouts(unfinished: Sequence[ModelRollout]) -> list[tuple[ModelRollout, str | None, str | None]]:
    """Each with the older one it waits for and the newer one that supersedes it.

    `unfinished`: rollouts, oldest first. Of one service only the oldest acts; of several made in the same second,
    between which only their names decide, the one that has begun.
    """
    by_service: defaultdict[tuple[str, str], list[ModelRollout]] = defaultdict(list)
    for each in unfinished:
        by_service[each.metadata.namespace, each.spec.service].append(each)
    result = []
    for same in by_service.values():
        same.sort(key=lambda each: each.status.phase is Phase.PENDING)
        for place, each in enumerate(same):
            newer = same[place + 1 :]
            supersedes = [other.metadata.name for other in newer if other.spec.concurrency is Concurrency.SUPERSEDE]
            waits_for = same[0].metadata.name if place else None
            result.append((each, waits_for, supersedes[-1] if supersedes else None))
    return result
