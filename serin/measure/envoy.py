"""Envoy's counters, read the same way from the embedded gateway and from Kourier's."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

STATS_FILTER: Final = (
    r"^cluster\..*\.(upstream_rq_([0-9]{3}|active|timeout|tx_reset|retry_success)|membership_healthy"
    r"|upstream_cx_destroy_local_with_active_rq)$"
    r"|\.(rds\.services|cds)\.version_text$"
)
"""Value of the `filter` parameter of Envoy's `/stats/prometheus` that keeps the answer small."""

_ACTIVE: Final = "envoy_cluster_upstream_rq_active"
_HEALTHY: Final = "envoy_cluster_membership_healthy"
_RETRIED: Final = "envoy_cluster_upstream_rq_retry_success"
_TIMED_OUT: Final = "envoy_cluster_upstream_rq_timeout"
_CUT_OFF: Final = ("envoy_cluster_upstream_cx_destroy_local_with_active_rq", "envoy_cluster_upstream_rq_tx_reset")
"""HTTP/1.1 takes a request back by closing its connection, HTTP/2 by resetting its stream."""
_PLAIN: Final = (_ACTIVE, _HEALTHY, _RETRIED, _TIMED_OUT, *_CUT_OFF)
_LINE: Final = re.compile(r"^(?P<name>envoy_\w+)\{(?P<labels>[^}\n]*)\} (?P<value>[0-9.e+]+)$", re.MULTILINE)
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class ClusterStats:
    """Cumulative answers by HTTP status code, and gauges, of one revision at the gateway.

    `retried` of the answers came from another process than the one that was asked first. `cut_off`: requests that the
    gateway took back from the model server; `timed_out`: those of them that it answered with 504 itself. Of the
    others the client was gone.
    """

    codes: Mapping[int, int] = field(default_factory=dict)
    retried: int = 0
    cut_off: int = 0
    timed_out: int = 0
    active: int = 0
    healthy: int = 0


@dataclass(frozen=True, slots=True)
class GatewayStats:
    """`versions`: the version in force of "services" (routes) and "clusters", where the answer carries them."""

    clusters: Mapping[str, ClusterStats]
    versions: Mapping[str, str]


def parse(text: str) -> GatewayStats:
    """Read the Prometheus text of Envoy's `/stats/prometheus`; lines about other things are passed over."""
    codes: dict[str, dict[int, int]] = defaultdict(dict)
    plain: dict[str, dict[str, int]] = defaultdict(dict)
    versions: dict[str, str] = {}
    for line in _LINE.finditer(text):
        labels = dict(_LABEL.findall(line["labels"]))
        name, value = line["name"], int(float(line["value"]))
        cluster = labels.get("envoy_cluster_name")
        if name == "envoy_cluster_upstream_rq" and cluster is not None:
            codes[cluster][int(labels["envoy_response_code"])] = value
        elif name in _PLAIN and cluster is not None:
            plain[cluster][name] = value
        elif name.endswith("version_text"):
            versions["services" if "rds" in name else "clusters"] = labels["text_value"]
    return GatewayStats(
        clusters={
            cluster: ClusterStats(
                codes=codes.get(cluster, {}),
                retried=plain[cluster].get(_RETRIED, 0),
                cut_off=sum(plain[cluster].get(name, 0) for name in _CUT_OFF),
                timed_out=plain[cluster].get(_TIMED_OUT, 0),
                active=plain[cluster].get(_ACTIVE, 0),
                healthy=plain[cluster].get(_HEALTHY, 0),
            )
            for cluster in codes.keys() | plain.keys()
        },
        versions=versions,
    )
