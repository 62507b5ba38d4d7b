"""Leader election by a Lease: of several controllers one acts."""

import logging
import math
import threading
import time
from datetime import UTC, datetime
from typing import Any, Final

from serin.errors import TryAgain, UserError
from serin.kube.api import Api

LEASE: Final = "serin-controller"
DURATION_S: Final = 15.0
"""A lease not renewed for this long may be taken."""
RENEW_S: Final = 3.0
GIVE_UP_S: Final = 10.0
"""A leader that could not renew for this long stops acting, well before another may begin."""
_TIME: Final = "%Y-%m-%dT%H:%M:%S.%fZ"
_log = logging.getLogger("serin.leader")


def path(namespace: str, name: str = "") -> str:
    """Where leases are at the API server."""
    return f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases" + (f"/{name}" if name else "")


class Leader:
    def __init__(self, api: Api, namespace: str, identity: str) -> None:
        self._api, self._namespace, self._identity = api, namespace, identity
        self._seen: tuple[str, float] = ("", 0.0)
        self._renewed_s = -math.inf

    @property
    def leads(self) -> bool:
        return time.monotonic() - self._renewed_s < GIVE_UP_S

    def keep(self, stop: threading.Event) -> None:
        """Take the lease as soon as it is free, and renew it, until `stop`."""
        led = False
        while not stop.is_set():
            self._attempt()
            if self.leads is not led:
                led = not led
                _log.warning("%s %s", self._identity, "leads" if led else "lost its lease and stopped acting")
            stop.wait(RENEW_S)

    def hand_over(self) -> None:
        """Let another begin at once, if the lease is ours."""
        self._renewed_s = -math.inf
        try:
            held = self._api.get(path(self._namespace, LEASE))
            if held is not None and held["spec"].get("holderIdentity") == self._identity:
                self._api.replace(path(self._namespace, LEASE), _held(held, ""))
        except (TryAgain, UserError) as error:
            _log.info("lease was not handed over: %s", error)

    def _attempt(self) -> None:
        """Take or renew the lease. The clock of whoever holds it is not trusted: it is free when its record did not
        change for its duration by our own clock."""
        start_s = time.monotonic()
        try:
            held = self._api.get(path(self._namespace, LEASE))
            if held is None:
                document = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": LEASE}}
                self._api.create(path(self._namespace), _held(document, self._identity))
            else:
                version, holder = held["metadata"]["resourceVersion"], held["spec"].get("holderIdentity")
                if version != self._seen[0]:
                    self._seen = (version, time.monotonic())
                if holder not in ("", None, self._identity) and time.monotonic() - self._seen[1] < DURATION_S:
                    self._renewed_s = -math.inf
                    return
                self._api.replace(path(self._namespace, LEASE), _held(held, self._identity))
        except (TryAgain, UserError) as error:
            _log.log(logging.INFO if isinstance(error, TryAgain) else logging.ERROR, "lease: %s", error)
        else:
            self._renewed_s = start_s


def _held(document: dict[str, Any], identity: str) -> dict[str, Any]:
    before = document.get("spec", {})
    changes = before.get("leaseTransitions", 0) + (before.get("holderIdentity") != identity)
    now = datetime.now(UTC).strftime(_TIME)
    spec = {
        "holderIdentity": identity,
        "leaseDurationSeconds": int(DURATION_S),
        "acquireTime": before.get("acquireTime", now) if before.get("holderIdentity") == identity else now,
        "renewTime": now,
        "leaseTransitions": changes,
    }
    return {**document, "spec": spec}
