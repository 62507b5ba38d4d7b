"""Leader election by a Lease: of several controllers one acts."""

import logging
import threading
import time
from datetime import UTC, datetime
from typing import Any, Final

from serin.errors import TryAgain, UserError
from serin.platforms.kserve import objects
from serin.platforms.kserve.api import Api, Conflict

LEASE: Final = "serin-controller"
DURATION_S: Final = 15.0
"""A lease not renewed for this long may be taken."""
RENEW_S: Final = 3.0
GIVE_UP_S: Final = 10.0
"""A leader that could not renew for this long stops acting, well before another may begin."""
_TIME: Final = "%Y-%m-%dT%H:%M:%S.%fZ"
_log = logging.getLogger("serin.leader")


class Leader:
    def __init__(self, api: Api, namespace: str, identity: str) -> None:
        self._api, self._namespace, self._identity = api, namespace, identity
        self._seen: tuple[str, float] = ("", 0.0)
        self.leads = False

    def acquire(self, stop: threading.Event) -> None:
        """Wait until the lease is ours, or until `stop`."""
        while not stop.is_set():
            if self._attempt():
                self.leads = True
                _log.info("%s leads", self._identity)
                return
            stop.wait(RENEW_S)

    def keep(self, stop: threading.Event) -> None:
        """Renew until `stop`, which is set here when the lease is lost; then hand it over at once."""
        renewed_s = time.monotonic()
        while not stop.wait(RENEW_S):
            if self._attempt():
                renewed_s = time.monotonic()
            elif time.monotonic() - renewed_s > GIVE_UP_S:
                _log.error("%s lost its lease", self._identity)
                self.leads = False
                stop.set()
                return
        self.leads = False
        try:
            held = self._api.get(objects.lease(self._namespace, LEASE))
            if held is not None and held["spec"].get("holderIdentity") == self._identity:
                self._api.replace(objects.lease(self._namespace, LEASE), _held(held, ""))
        except (TryAgain, UserError) as error:
            _log.info("lease was not handed over: %s", error)

    def _attempt(self) -> bool:
        """Take or renew the lease. The clock of whoever holds it is not trusted: it is free when its record did not
        change for its duration by our own clock."""
        try:
            held = self._api.get(objects.lease(self._namespace, LEASE))
            if held is None:
                document = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": LEASE}}
                self._api.create(objects.lease(self._namespace), _held(document, self._identity))
                return True
            version, holder = held["metadata"]["resourceVersion"], held["spec"].get("holderIdentity")
            if version != self._seen[0]:
                self._seen = (version, time.monotonic())
            if holder not in ("", None, self._identity) and time.monotonic() - self._seen[1] < DURATION_S:
                return False
            self._api.replace(objects.lease(self._namespace, LEASE), _held(held, self._identity))
        except Conflict:
            return False
        except TryAgain as error:
            _log.warning("lease: %s", error)
            return False
        return True


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
