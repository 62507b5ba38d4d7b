"""The embedded gateway: a real Envoy that reads its clusters and routes from files.

Files are replaced by an atomic rename, which Envoy notices and applies without dropping a request; whatever was
in force last is in force again after a crash of Envoy or of the supervisor. Clusters are named
`<namespace>/<revision>`, as Kourier names them, so both are read by the same code.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

LOCAL: Final = "127.0.0.1"
SOCKETS: Final = "sockets"
"""The folder of a platform, open to its user alone, with the sockets by which its processes speak to each other. They
are named from the platform's folder, where the processes work: a socket's whole path may have 107 bytes only."""
ADMIN: Final = f"{SOCKETS}/gateway"
_TYPE: Final = "type.googleapis.com/envoy."
_MANAGER: Final = f"{_TYPE}extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER: Final = f"{_TYPE}extensions.filters.http.router.v3.Router"
_HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

UPSTREAM_IDLE_S: Final = 3
"""Below the 5 s after which the model server closes an idle connection: Envoy must never send into one that is
just being closed."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """`socket` is where the model server listens."""

    cluster: str
    model_name: str
    socket: str


@dataclass(frozen=True, slots=True)
class ServiceRoute:
    """`weights`: percent of the predictions by cluster name, summing to 100. `stable` is the one that answers
    everything else."""

    model_name: str
    weights: Mapping[str, int]
    stable: str


def socket_of(cluster: str) -> str:
    return f"{SOCKETS}/{hashlib.sha256(cluster.encode()).hexdigest()[:16]}"


def bootstrap(folder: Path, port: int) -> dict[str, Any]:
    """Envoy's bootstrap document: one listener on loopback, clusters and routes from `folder`. `port` 0 is any."""
    return {
        "node": {"id": "serin", "cluster": "serin"},
        "admin": {"address": {"pipe": {"path": ADMIN, "mode": 0o600}}},
        "stats_flush_interval": "1s",
        "dynamic_resources": {"cds_config": _file_source(folder, "clusters.json")},
        "static_resources": {
            "listeners": [
                {
                    "name": "gateway",
                    "address": {"socket_address": {"address": LOCAL, "port_value": port}},
                    "enable_reuse_port": False,  # else another program could share the port, and our requests
                    "filter_chains": [
                        {
                            "filters": [
                                {
                                    "name": "envoy.filters.network.http_connection_manager",
                                    "typed_config": {
                                        "@type": _MANAGER,
                                        "stat_prefix": "gateway",
                                        "generate_request_id": True,
                                        "http_protocol_options": {
                                            "accept_http_10": True,  # load testers and old clients speak it
                                            "default_host_for_http_10": "localhost",
                                        },
                                        "rds": {
                                            "route_config_name": "services",
                                            "config_source": _file_source(folder, "routes.json"),
                                        },
                                        "http_filters": [
                                            {
                                                "name": "envoy.filters.http.router",
                                                "typed_config": {"@type": _ROUTER},
                                            }
                                        ],
                                    },
                                }
                            ]
                        }
                    ],
                }
            ]
        },
    }


def clusters(upstreams: Sequence[Upstream]) -> list[dict[str, Any]]:
    """Two of each model server: its predictions are counted under its name, as evidence; all else under another."""
    return [cluster for upstream in upstreams for cluster in (_predictions(upstream), _other(upstream))]


def other(cluster: str) -> str:
    """The name under which answers of a revision that are no predictions are counted."""
    return f"{cluster}/other"


def _cluster(name: str, upstream: Upstream) -> dict[str, Any]:
    return {
        "@type": f"{_TYPE}config.cluster.v3.Cluster",
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": upstream.socket}}}}]}],
        },
        "typed_extension_protocol_options": {
            _HTTP_OPTIONS: {
                "@type": f"{_TYPE}extensions.upstreams.http.v3.HttpProtocolOptions",
                "common_http_protocol_options": {"idle_timeout": f"{UPSTREAM_IDLE_S}s"},
                "explicit_http_config": {"http_protocol_options": {}},
            }
        },
    }


def _predictions(upstream: Upstream) -> dict[str, Any]:
    health_check = {
        "timeout": "2s",
        "interval": "1s",
        "unhealthy_interval": "0.25s",
        "no_traffic_interval": "1s",
        "initial_jitter": "0.05s",
        "unhealthy_threshold": 3,
        "healthy_threshold": 1,
        "http_health_check": {"path": f"/v2/models/{upstream.model_name}/ready"},
    }
    return {**_cluster(upstream.cluster, upstream), "health_checks": [health_check]}


def _other(upstream: Upstream) -> dict[str, Any]:
    return _cluster(other(upstream.cluster), upstream)


def routes(services: Sequence[ServiceRoute]) -> list[dict[str, Any]]:
    """Predictions of each service, split by weight, and its other paths."""
    return [
        {
            "@type": f"{_TYPE}config.route.v3.RouteConfiguration",
            "name": "services",
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [
                        route for service in services for route in (_prediction_route(service), _other_route(service))
                    ],
                }
            ],
        }
    ]


def _prediction_route(service: ServiceRoute) -> dict[str, Any]:
    model = f"models/{re.escape(service.model_name)}"
    weights = [{"name": name, "weight": weight} for name, weight in service.weights.items() if weight > 0]
    return {
        "match": {
            "safe_regex": {"regex": f"/v1/{model}:(predict|explain)|/v2/{model}(/versions/[^/]+)?/infer"},
            "headers": [{"name": ":method", "string_match": {"exact": "POST"}}],
        },
        "route": _routed({"weighted_clusters": {"clusters": weights}}),
    }


def _other_route(service: ServiceRoute) -> dict[str, Any]:
    """Metadata, health, and what is no request of the protocols: stable answers, and nobody is judged by it."""
    return {
        "match": {"safe_regex": {"regex": f"/v[12]/models/{re.escape(service.model_name)}([:/].*)?"}},
        "route": _routed({"cluster": other(service.stable)}),
    }


def _routed(target: Mapping[str, Any]) -> dict[str, Any]:
    """A request that never reached a model is tried again."""
    return {
        "timeout": "30s",
        "retry_policy": {"retry_on": "connect-failure,refused-stream,reset-before-request", "num_retries": 2},
        **target,
    }


def write(path: Path, version: str, resources: list[dict[str, Any]]) -> None:
    """Replace a file that Envoy watches; `version` is what Envoy reports once it is in force."""
    text = json.dumps({"version_info": version, "resources": resources}, indent=1)
    temporary = path.with_suffix(".new")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)  # noqa: PTH105 - the rename is the point


def _file_source(folder: Path, name: str) -> dict[str, Any]:
    return {
        "resource_api_version": "V3",
        "path_config_source": {"path": str(folder / name), "watched_directory": {"path": str(folder)}},
    }
