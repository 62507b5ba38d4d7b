"""The gateway's files, and the way back that needs neither the store nor room on the disk.

Beside routes by which a candidate gets traffic there is always a second file with the same routes and all traffic on
stable. To put it in force takes one rename, which works on a full disk, with a store that is damaged or locked, and
before anything is written down.
"""

import os
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Final

from serin.measure import envoy
from serin.platforms.embedded import gateway
from serin.platforms.embedded.gateway import ServiceRoute, Upstream
from serin.platforms.embedded.store import Service, Store

FOLDER: Final = "gateway"
CLUSTERS: Final = "clusters.json"
ROUTES: Final = "routes.json"
WAY_BACK: Final = "routes.stable.json"
_STABLE: Final = "-stable"

Splits = dict[tuple[str, str], int]
"""The candidate's percent by namespace and service."""


def fall_back(home: Path) -> bool:
    """Give all traffic to the stable revisions; False when no candidate had any. Raises `OSError`."""
    folder = home / FOLDER
    try:
        os.replace(folder / WAY_BACK, folder / ROUTES)  # noqa: PTH105 - the rename is the point
    except FileNotFoundError:
        return False
    return True


class Routes:
    def __init__(self, home: Path, store: Store) -> None:
        self._home, self._store = home, store
        self._folder = home / FOLDER
        self._clusters: list[dict[str, Any]] | None = None
        self._routes: list[dict[str, Any]] | None = None
        self._version = ""
        self._splits: dict[str, Splits] = {}
        self._services: list[ServiceRoute] = []

    @property
    def pins(self) -> dict[str, int]:
        """What gives all traffic to the stable revisions where no file can be replaced (`gateway.pins`)."""
        return gateway.pins(self._services)

    def recall(self) -> None:
        """What the routes in force mean, as the supervisor before us wrote it down."""
        for version, splits in self._store.setting("routes") or []:
            self._splits[version] = {(namespace, name): percent for namespace, name, percent in splits}

    def confirmed(self, stats: envoy.GatewayStats) -> Splits:
        """The splits that the gateway says are in force."""
        return self._splits.get(stats.versions.get("services", ""), {})

    def in_force(self, stats: envoy.GatewayStats) -> bool:
        """Whether the gateway has the routes written last."""
        return stats.versions.get("services") == self._version

    def write_clusters(self, upstreams: Sequence[Upstream]) -> None:
        resources = gateway.clusters(upstreams)
        if resources != self._clusters:
            gateway.write(self._folder / CLUSTERS, _new_version(), resources)
            self._clusters = resources
        if not (self._folder / ROUTES).exists():
            gateway.write(self._folder / ROUTES, _new_version(), gateway.routes([]))

    def write(self, services: Sequence[Service], healthy: Collection[str]) -> None:
        """The wanted split of every service; a candidate whose health checks fail gets nothing.

        What `splits` a version stands for is written down first, so that whatever the gateway says is in force is
        understood after a restart at any moment; then the way back from them; then the routes themselves.
        """
        splits = {
            (each.namespace, each.name): each.percent if f"{each.namespace}/{each.candidate}" in healthy else 0
            for each in services
            if each.stable is not None
        }
        self._services = _service_routes(services, splits)
        resources = gateway.routes(self._services)
        if resources == self._routes:
            return
        version, none = _new_version(), dict.fromkeys(splits, 0)
        latest = dict(list(self._splits.items())[-4:])
        self._splits = {**latest, version: splits, version + _STABLE: none}
        known = [[each, [[*key, percent] for key, percent in meant.items()]] for each, meant in self._splits.items()]
        self._store.save_setting("routes", known)
        way_back = self._folder / WAY_BACK
        if any(splits.values()):
            gateway.write(way_back, version + _STABLE, gateway.routes(_service_routes(services, none)))
        gateway.write(self._folder / ROUTES, version, resources)
        self._routes, self._version = resources, version
        if not any(splits.values()):
            way_back.unlink(missing_ok=True)

    def fall_back(self) -> bool:
        """All traffic to stable, until routes are written again."""
        self._routes = None
        if not fall_back(self._home):
            return False
        self._version += _STABLE
        return True


def _service_routes(services: Sequence[Service], splits: Splits) -> list[ServiceRoute]:
    return [
        ServiceRoute(
            each.name,
            {
                f"{each.namespace}/{each.stable}": 100 - splits[each.namespace, each.name],
                f"{each.namespace}/{each.candidate}": splits[each.namespace, each.name],
            },
            f"{each.namespace}/{each.stable}",
        )
        for each in services
        if each.stable is not None
    ]


def _new_version() -> str:
    return str(time.time_ns())
