"""Events of declared metrics, from the model servers' pods."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import urllib3

from serin.judge.policy import Source
from serin.measure import events
from serin.measure.tally import EVENT, PARTS, Series
from serin.platforms.kserve import bounded

POD_S: Final = 0.5
REVISION_S: Final = 2.0
"""A pod, and all of a revision together, are waited for no longer than this."""
REST: Final = 3.0
"""Pods of a revision that took longer than one may are left alone for this many times as long."""


@dataclass(frozen=True, slots=True)
class Declared:
    """By process, and the metrics that every pod told."""

    read: Mapping[str, Series] = field(default_factory=dict)
    reports: tuple[str, ...] = ()


class DeclaredEvents:
    """Never raises: what a pod does not tell is not reported, and the other metrics are judged all the same."""

    def __init__(self, http: bounded.Http) -> None:
        self._http = http
        self._lock = threading.Lock()
        self._rests_until_s: dict[tuple[str, str], float] = {}

    def read(self, namespace: str, revision: str, pods: Mapping[str, str], sources: Mapping[str, Source]) -> Declared:
        """`pods` are the addresses of the revision's serving pods, by uid."""
        start_s = time.monotonic()
        with self._lock:
            self._rests_until_s = {key: until for key, until in self._rests_until_s.items() if until > start_s}
            if not sources or (namespace, revision) in self._rests_until_s:
                return Declared()
        read: dict[str, Series] = {}
        reports = set(sources) if pods else set[str]()
        for uid, address in pods.items():
            counts: dict[str, float] = {}
            if time.monotonic() - start_s < REVISION_S - POD_S:
                started, counts = self._ask(address, sources)
                series = {f"{revision}{EVENT}{name}": {0: round(n * PARTS)} for name, n in counts.items()}
                read |= {f"{uid} {started}": series} if series else {}
            reports &= set(counts)
        took_s = time.monotonic() - start_s
        if took_s > POD_S:
            with self._lock:
                self._rests_until_s[namespace, revision] = start_s + took_s * (1 + REST)
        return Declared(read, tuple(sorted(reports)))

    def _ask(self, address: str, sources: Mapping[str, Source]) -> tuple[str, dict[str, float]]:
        """When the process began, and what it counted."""
        try:
            answer = self._http.request("GET", f"{address}/metrics", timeout_s=POD_S)
            text = answer.body.decode() if answer.status == 200 else ""
            return events.process(text), events.parse(text, sources)
        except (urllib3.exceptions.HTTPError, bounded.TooLarge, OSError, ValueError):
            return "", {}
