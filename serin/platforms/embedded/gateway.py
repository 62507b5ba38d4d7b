"""The embedded gateway: a real Envoy that reads its clusters and routes from files.

Files are replaced by an atomic rename, which Envoy notices and applies without dropping a request; whatever was
in force last is in force again after a crash of Envoy or of the supervisor. Clusters are named
`<namespace>/<revision>`, as Kourier names them, so both are read by the same code.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

LOCAL: Final = "127.0.0.1"
SOCKETS: Final = "sockets"
"""The folder of a platform, open to its user alone, with the sockets by which its processes speak to each other. They
are named from the platform's folder, where the processes work: a socket's whole path may have 107 bytes only."""
_PINNED: Final = "pinned"
ADMIN: Final = f"{SOCKETS}/gateway"
_TYPE: Final = "type.googleapis.com/envoy."
_MANAGER: Final = f"{_TYPE}extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER: Final = f"{_TYPE}extensions.filters.http.router.v3.Router"
_HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

_PREVIOUS_HOSTS: Final = {
    "name": "envoy.retry_host_predicates.previous_hosts",
    "typed_config": {"@type": f"{_TYPE}extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"},
}
_MISDIRECTED: Final = f"This gateway accepts only localhost or {LOCAL} as Host."
_UNSUPPORTED: Final = "Send Content-Type: application/json, or application/octet-stream with binary tensors."
_OF_A_PAGE: Final[Sequence[Sequence[Mapping[str, Any]]]] = (
    ({"name": "content-type", "string_match": {"safe_regex": {"regex": r"(?i)(text/plain|multipart/).*"}}},),
    (
        {"name": "origin", "present_match": True},
        {"name": ":method", "string_match": {"exact": "POST"}},
        {
            "name": "content-type",
            "string_match": {"safe_regex": {"regex": r"(?i)application/(json|octet-stream)\b.*"}},
            "treat_missing_header_as_empty": True,
            "invert_match": True,
        },
    ),
)
"""What the requests have in common that a browser sends for any page. Programs that name no content type, or the one
that curl names unless it is told better, name no origin either."""
MAX_RETRIES: Final = 1024
"""As many as requests that may be under way: all those that a killed server had."""
UPSTREAM_IDLE_S: Final = 3
"""Below the 5 s after which the model server closes an idle connection: Envoy must never send into one that is
just being closed."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """`sockets` are those on which the revision's model servers listen, or will."""

    cluster: str
    model_name: str
    sockets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ServiceRoute:
    """`weights`: percent of the predictions by cluster name, summing to 100. `stable` is the one that answers
    everything else."""

    model_name: str
    weights: Mapping[str, int]
    stable: str


def socket_of(cluster: str, number: int) -> str:
    """Of the revision's server `number`."""
    return f"{SOCKETS}/{hashlib.sha256(cluster.encode()).hexdigest()[:16]}.{number}"


def bootstrap(folder: Path, port: int) -> dict[str, Any]:
    """Envoy's bootstrap document: one listener on loopback, clusters and routes from `folder`. `port` 0 is any."""
    return {
        "node": {"id": "serin", "cluster": "serin"},
        "admin": {"address": {"pipe": {"path": ADMIN, "mode": 0o600}}},
        "stats_flush_interval": "1s",
        "layered_runtime": {"layers": [{"name": "admin", "admin_layer": {}}]},  # for `pins`
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
                                        "local_reply_config": {
                                            "body_format": {"json_format": {"error": "%LOCAL_REPLY_BODY%"}}
                                        },
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
    """Two of each revision: its predictions are counted under its name, as evidence; all else under another."""
    return [cluster for upstream in upstreams for cluster in (_predictions(upstream), _other(upstream))]


def other(cluster: str) -> str:
    """The name under which answers of a revision that are no predictions are counted."""
    return f"{cluster}/other"


def _cluster(name: str, upstream: Upstream) -> dict[str, Any]:
    servers = [{"endpoint": {"address": {"pipe": {"path": socket}}}} for socket in upstream.sockets]
    return {
        "@type": f"{_TYPE}config.cluster.v3.Cluster",
        "name": name,
        "type": "STATIC",
        "common_lb_config": {
            "healthy_panic_threshold": {"value": 20},
            "update_merge_window": "0s",  # else it goes on asking a server for a second after it found it dead
        },
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": servers}]},
        # One that loses a request is out at once, before health checks find it dead, while another is left.
        "outlier_detection": {
            "split_external_local_origin_errors": True,
            "consecutive_local_origin_failure": 1,
            "enforcing_consecutive_5xx": 0,
            "enforcing_local_origin_success_rate": 0,
            "enforcing_success_rate": 0,
            "interval": "1s",
            "base_ejection_time": "5s",
            "max_ejection_percent": 50,
        },
        "circuit_breakers": {"thresholds": [{"max_retries": MAX_RETRIES}]},
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
    """Predictions of each service, split by weight, and its other paths, for programs of this machine: no page that
    its user looks at may ask for predictions in the user's name, be it under a host name of its own (DNS rebinding)
    or with a request that a browser sends unasked, which has one of three content types."""
    return [
        {
            "@type": f"{_TYPE}config.route.v3.RouteConfiguration",
            "name": "services",
            "ignore_port_in_host_matching": True,
            "virtual_hosts": [
                {
                    "name": "services",
                    "domains": ["localhost", LOCAL],
                    "routes": [
                        *(_refusal(415, _UNSUPPORTED, headers=headers) for headers in _OF_A_PAGE),
                        *(route for each in services for route in (_prediction_route(each), _other_route(each))),
                        _refusal(404, _not_here([service.model_name for service in services])),
                    ],
                },
                {"name": "elsewhere", "domains": ["*"], "routes": [_refusal(421, _MISDIRECTED)]},
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
        "route": _routed({"weighted_clusters": {"clusters": weights, "runtime_key_prefix": _PINNED}}),
    }


def pins(services: Sequence[ServiceRoute]) -> dict[str, int]:
    """Runtime values of Envoy that give all traffic to the stable revisions, whatever weights the routes name."""
    return {
        f"{_PINNED}.{name}": 100 if name == service.stable else 0
        for service in services
        for name, weight in service.weights.items()
        if weight > 0
    }


def pinned(clusters: Iterable[str]) -> list[str]:
    """The names of such values."""
    return [f"{_PINNED}.{cluster}" for cluster in clusters]


def _other_route(service: ServiceRoute) -> dict[str, Any]:
    """Metadata, health, and what is no request of the protocols: stable answers, and nobody is judged by it."""
    return {
        "match": {"safe_regex": {"regex": f"/v[12]/models/{re.escape(service.model_name)}([:/].*)?"}},
        "route": _routed({"cluster": other(service.stable)}),
    }


def _routed(target: Mapping[str, Any]) -> dict[str, Any]:
    """A request is tried again, by another server of the same revision, when no byte of its answer came: inference
    changes nothing, so it may be asked twice."""
    return {
        "timeout": "30s",
        "retry_policy": {
            "retry_on": "connect-failure,refused-stream,reset",
            "num_retries": 2,
            "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.05s"},
            "retry_host_predicate": [_PREVIOUS_HOSTS],
            "host_selection_retry_max_attempts": 5,
        },
        **target,
    }


def _refusal(status: int, sentence: str, *, headers: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """An answer of the gateway's own to every request with `headers`; it becomes `{"error": sentence}`."""
    match = {"prefix": "/", **({"headers": list(headers)} if headers else {})}
    return {"match": match, "direct_response": {"status": status, "body": {"inline_string": sentence}}}


def _not_here(models: Sequence[str]) -> str:
    if not models:
        return "No model is served yet; release a first one."
    names = ", ".join(models)
    return (
        f"Nothing is served at this path. Models: {names}; send requests to /v1/models/NAME:predict or "
        "/v2/models/NAME/infer."
    )


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
