"""What a platform forgets, and what it never does.

Kept for good: models that serve, are candidates, served before, or are wanted by an unfinished rollout; everything of
unfinished rollouts; the rollout by which each service got its model.
"""

import logging
import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from serin.platforms.embedded.store import Ended, Store
from serin.platforms.embedded.takeover import PARTIAL, model_folder

DAY_S: Final = 86400.0
LOGS: Final = "logs"
_log = logging.getLogger("serin.supervisor")


@dataclass(frozen=True, slots=True)
class Keep:
    """How much is kept beside what is kept for good.

    Timelines (windows) of the latest `timelines` rollouts of each service and of all younger than `timeline_days`;
    rollouts themselves likewise; models and logs that nothing refers to for `model_days` and `log_days`. A log that
    grew beyond `log_bytes` loses its beginning.
    """

    timelines: int = 20
    timeline_days: float = 7
    rollouts: int = 1000
    rollout_days: float = 90
    model_days: float = 7
    log_days: float = 14
    log_bytes: int = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Pruning:
    """`timelines` and `rollouts` by namespace and name; `models` and `logs` that go, `long_logs` that are cut."""

    timelines: tuple[tuple[str, str], ...] = ()
    rollouts: tuple[tuple[str, str], ...] = ()
    models: tuple[Path, ...] = ()
    logs: tuple[Path, ...] = ()
    long_logs: tuple[Path, ...] = ()

    @property
    def empty(self) -> bool:
        return not (self.timelines or self.rollouts or self.models or self.logs or self.long_logs)


def plan(store: Store, keep: Keep, now: datetime) -> Pruning:
    """What is to go. `now` is UTC; nothing is changed."""
    ended = store.ended()
    rollouts = beyond(ended, keep.rollouts, now - timedelta(days=keep.rollout_days))
    timelines = beyond(
        [each for each in ended if each.windows], keep.timelines, now - timedelta(days=keep.timeline_days)
    )
    logs = _logs(store)
    old = [each for each in logs if _age_s(each, now) > keep.log_days * DAY_S and not _in_use(each, store)]
    return Pruning(
        timelines=tuple(each.key for each in timelines),
        rollouts=tuple(each.key for each in rollouts),
        models=tuple(_models(store, keep, now)),
        logs=tuple(old),
        long_logs=tuple(each for each in logs if each not in old and each.stat().st_size > keep.log_bytes),
    )


def beyond(ended: Sequence[Ended], count: int, since: datetime) -> list[Ended]:
    """Those made before `since` that are not among the latest `count` of their service, nor the last one promoted.
    `ended` in the order of their creation."""
    of_service: defaultdict[tuple[str, str], list[Ended]] = defaultdict(list)
    for each in ended:
        of_service[each.key[0], each.service].append(each)
    kept: set[tuple[str, str]] = set()
    for same in of_service.values():
        kept |= {each.key for each in same[len(same) - min(count, len(same)) :]}
        kept |= {each.key for each in [each for each in same if each.promoted][-1:]}
    return [each for each in ended if each.key not in kept and each.created_at < since]


def _models(store: Store, keep: Keep, now: datetime) -> Iterable[Path]:
    wanted = {each.model for each in store.revisions()}
    digests = {each.previous for each in store.services()} | set(store.promoted_digests(2))
    for each in store.unfinished():
        digests.add(each.spec.candidate.digest)
        if each.spec.candidate.storage_uri is not None:
            wanted.add(Path(each.spec.candidate.storage_uri.removeprefix("file://")))
            if each.spec.candidate.digest is None:
                return  # whichever it is, it stays
    wanted |= {model_folder(store.home, each) for each in digests if each is not None}
    for folder in sorted((store.home / "models").glob("*")):
        gone = folder.suffix != PARTIAL and folder not in wanted and folder.resolve() not in wanted
        if gone and _age_s(folder, now) > keep.model_days * DAY_S:
            yield folder


def _logs(store: Store) -> list[Path]:
    return sorted(each for each in (store.home / LOGS).glob("*.log") if each.is_file())


def _in_use(log: Path, store: Store) -> bool:
    return log.stem in {"supervisor", "gateway", *(each.name for each in store.revisions())}


def _age_s(path: Path, now: datetime) -> float:
    return now.timestamp() - path.stat().st_mtime


def carry_out(store: Store, pruning: Pruning, keep: Keep, now: datetime) -> None:
    """Models first: they are what takes room. Each step by itself, so that a kill in between does no harm."""
    for folder in pruning.models:
        partial = folder.with_name(folder.name + PARTIAL)  # half a model is never taken for one
        with store.transaction():  # no rollout that wants it can come in between
            if folder not in _models(store, keep, now):
                continue
            folder.rename(partial)
        shutil.rmtree(partial)
    for log in pruning.logs:
        log.unlink(missing_ok=True)
    for log in pruning.long_logs:
        shorten(log, keep.log_bytes // 4)
    for namespace, name in pruning.timelines:
        store.delete_windows(name, namespace)
    for namespace, name in pruning.rollouts:
        store.delete_rollout(name, namespace)


def shorten(log: Path, size: int) -> None:
    """Keep the last `size` bytes. Whoever has it open appends to what is left."""
    with log.open("r+b") as file:
        file.seek(-min(size, log.stat().st_size), 2)
        file.readline()
        end = file.read()
        file.seek(0)
        file.write(end)
        file.truncate()


def prune(home: Path) -> None:
    """By the defaults; for a thread beside the supervisor's loop."""
    store, keep, now = Store(home), Keep(), datetime.now(UTC)
    try:
        pruning = plan(store, keep, now)
        if not pruning.empty:
            _log.info(
                "pruning %d models, %d timelines, %d rollouts, %d logs",
                *(len(each) for each in (pruning.models, pruning.timelines, pruning.rollouts)),
                len(pruning.logs) + len(pruning.long_logs),
            )
            carry_out(store, pruning, keep, now)
    finally:
        store.close()


def old_runs(folder: Path, now: datetime, *, count: int = 20, days: float = 30) -> list[Path]:
    """Runs in `folder` older than `days` that are not among the latest `count`; never the one that `latest` names."""
    kept = (folder / "latest").resolve()
    runs = [each for each in folder.glob("*") if each.is_dir() and not each.is_symlink()]
    runs.sort(key=lambda each: each.stat().st_mtime)
    old = runs[: max(0, len(runs) - count)]
    return [each for each in old if each.resolve() != kept and _age_s(each, now) > days * DAY_S]
