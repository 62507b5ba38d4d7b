"""Reading Envoy's counters."""

import re

from serin.measure import envoy

CAPTURED = """\
# TYPE envoy_cluster_external_upstream_rq counter
envoy_cluster_external_upstream_rq{envoy_response_code="200",envoy_cluster_name="default/churn-predictor-00001"} 100
envoy_cluster_external_upstream_rq{envoy_response_code="400",envoy_cluster_name="default/churn-predictor-00001"} 3
# TYPE envoy_cluster_upstream_rq counter
envoy_cluster_upstream_rq{envoy_response_code="200",envoy_cluster_name="default/churn-predictor-00001"} 100
envoy_cluster_upstream_rq{envoy_response_code="400",envoy_cluster_name="default/churn-predictor-00001"} 3
envoy_cluster_upstream_rq{envoy_response_code="200",envoy_cluster_name="default/churn-predictor-00002"} 12
envoy_cluster_upstream_rq{envoy_response_code="503",envoy_cluster_name="default/churn-predictor-00002"} 1.5e+07
# TYPE envoy_cluster_upstream_rq_retry_success counter
envoy_cluster_upstream_rq_retry_success{envoy_cluster_name="default/churn-predictor-00001"} 2
# TYPE envoy_cluster_membership_healthy gauge
envoy_cluster_membership_healthy{envoy_cluster_name="default/churn-predictor-00001"} 1
envoy_cluster_membership_healthy{envoy_cluster_name="default/churn-predictor-00003"} 0
# TYPE envoy_cluster_upstream_rq_active gauge
envoy_cluster_upstream_rq_active{envoy_cluster_name="default/churn-predictor-00001"} 4
envoy_cluster_upstream_cx_destroy_local_with_active_rq{envoy_cluster_name="default/churn-predictor-00002"} 75
envoy_cluster_upstream_rq_tx_reset{envoy_cluster_name="default/churn-predictor-00002"} 2
envoy_cluster_upstream_rq_timeout{envoy_cluster_name="default/churn-predictor-00002"} 5
# TYPE envoy_cluster_manager_cds_version_text gauge
envoy_cluster_manager_cds_version_text{text_value="1795390937574980962"} 0
# TYPE envoy_http_rds_version_text gauge
envoy_http_rds_version_text{envoy_rds_route_config="services",envoy_http_conn_manager_prefix="gateway",\
text_value="1795390938994986902"} 0
"""
"""As Envoy 1.40 answered, with two more revisions and a large number."""


def test_answers_gauges_and_versions():
    stats = envoy.parse(CAPTURED)
    assert stats.versions == {"clusters": "1795390937574980962", "services": "1795390938994986902"}
    assert stats.clusters == {
        "default/churn-predictor-00001": envoy.ClusterStats({200: 100, 400: 3}, retried=2, active=4, healthy=1),
        "default/churn-predictor-00002": envoy.ClusterStats({200: 12, 503: 15_000_000}, cut_off=77, timed_out=5),
        "default/churn-predictor-00003": envoy.ClusterStats(),
    }


def test_odd_lines_are_passed_over():
    odd = """
envoy_cluster_upstream_rq{envoy_response_code="200"} 9
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="default/a",le="0.5"} 7
envoy_cluster_upstream_rq{envoy_response_code="200",envoy_cluster_name="default/a"} NaN
envoy_cluster_upstream_rq{envoy_response_code="200",envoy_cluster_name="default/a"
envoy_server_uptime{} 12
no metric at all
"""
    assert envoy.parse(odd) == envoy.GatewayStats({}, {})
    assert envoy.parse("") == envoy.GatewayStats({}, {})


def test_names_with_quotes_are_names():
    text = 'envoy_cluster_membership_healthy{envoy_cluster_name="a\\"b"} 1'
    assert list(envoy.parse(text).clusters) == ['a\\"b']


def test_the_filter_keeps_what_is_read_and_little_else():
    keep = re.compile(envoy.STATS_FILTER).search
    for name in (
        "cluster.default/churn-predictor-00001.upstream_rq_200",
        "cluster.default/churn-predictor-00001.upstream_rq_active",
        "cluster.default/churn-predictor-00001.upstream_rq_retry_success",
        "cluster.default/churn-predictor-00001.membership_healthy",
        "http.gateway.rds.services.version_text",
        "cluster_manager.cds.version_text",
    ):
        assert keep(name), name
    for name in ("cluster.default/a.upstream_rq_2xx", "cluster.default/a.upstream_cx_total", "server.version_text"):
        assert not keep(name), name
