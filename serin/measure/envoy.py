"""Envoy's counters, read the same way from the embedded gateway and from Kourier's."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

STATS_FILTER: Final = (
    r"^cluster\..*\.(upstream_rq_[0-9]{3}|upstream_rq_retry_success|upstream_rq_active|membership_healthy)$"
    r"|\.(rds\.services|cds)\.version_text$"
)
"""Value of the `filter` parameter of Envoy's `/stats/prometheus` that keeps the answer small."""

_PLAIN: Final = (
    "envoy_cluster_upstream_rq_retry_success",
    "envoy_cluster_upstream_rq_active",
    "envoy_cluster_membership_healthy",
)
_LINE: Final = re.compile(r"^(?P<name>envoy_\w+)\{(?P<labels>[^}\n]*)\} (?P<value>[0-9.e+]+)$", re.MULTILINE)
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class ClusterStats:
    """Cumulative answers by HTTP status code, and gauges, of one revision at the gateway. `retried` of the answers
    came from another process than the one that was asked first."""

    codes: Mapping[int, int] = field(default_factory=dict)
    retried: int = 0
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
                retried=plain[cluster].get("envoy_cluster_upstream_rq_retry_success", 0),
                active=plain[cluster].get("envoy_cluster_upstream_rq_active", 0),
                healthy=plain[cluster].get("envoy_cluster_membership_healthy", 0),
            )
            for cluster in codes.keys() | plain.keys()
        },
        versions=versions,
    )
