"""What Prometheus recorded of a rollout, as windows."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from serin.cli.main import cli
from serin.errors import UserError
from serin.judge.state import BEFORE
from serin.measure.export import read

STABLE, CANDIDATE = "churn-predictor-00004", "churn-predictor-00005"
T0 = 1_764_000_000


def series(revision: str, code: int, values: dict[int, float], *, pod: str = "10.0.0.7:9091", **labels: str) -> dict:
    """As queue-proxy's counter comes out of Prometheus; `values` by seconds after T0."""
    known = {
        "__name__": "revision_request_count",
        "configuration_name": "churn-predictor",
        "container_name": "queue-proxy",
        "instance": pod,
        "job": "queue-proxy",
        "namespace_name": "serving",
        "response_code": str(code),
        "response_code_class": f"{code // 100}xx",
        "revision_name": revision,
    }
    return {"metric": known | labels, "values": [[T0 + t, f"{value:g}"] for t, value in values.items()]}


def export(tmp_path: Path, *result: dict) -> Path:
    file = tmp_path / "range.json"
    answer = {"status": "success", "data": {"resultType": "matrix", "result": list(result)}}
    file.write_text(json.dumps(answer), encoding="utf-8")
    return file


def counted(file: Path) -> list[tuple]:
    """Per window: seconds after T0, stage, and requests and errors of both arms."""
    return [
        (
            each.start_s - T0,
            each.end_s - T0,
            each.stage,
            (each.stable.requests, each.stable.events["errors"]),
            (each.candidate.requests, each.candidate.events["errors"]),
        )
        for each in read(file, STABLE, CANDIDATE)
    ]


def test_counters_become_windows_from_the_candidates_first_request_on(tmp_path: Path) -> None:
    file = export(
        tmp_path,
        series(STABLE, 200, {0: 1000, 15: 1095, 30: 1190, 45: 1280}),
        series(STABLE, 503, {30: 2, 45: 3}),
        series(CANDIDATE, 200, {0: 4, 15: 4, 30: 9, 45: 13}, pod="10.0.0.8:9091"),
        series(CANDIDATE, 404, {45: 1}, pod="10.0.0.8:9091"),
    )
    assert counted(file) == [
        (0, 15, BEFORE, (95, 0), (0, 0)),
        (15, 30, 0, (97, 2), (5, 0)),
        (30, 45, 0, (91, 1), (5, 0)),
    ]
    last = read(file, STABLE, CANDIDATE)[-1]
    assert (last.share, last.candidate.events["rejected"]) == (None, 1)


def test_a_counter_that_was_reset_counts_from_zero_and_others_go_on(tmp_path: Path) -> None:
    file = export(
        tmp_path,
        series(STABLE, 200, {0: 1000, 15: 30, 30: 90}, pod="a"),
        series(STABLE, 200, {0: 5000, 15: 5050, 30: 5100}, pod="b"),
        series(CANDIDATE, 200, {0: 0, 15: 10, 30: 20}, pod="c"),
    )
    assert [(stable[0], candidate[0]) for *_, stable, candidate in counted(file)] == [(80, 10), (110, 10)]


def test_a_missed_scrape_makes_one_longer_window_for_both_arms(tmp_path: Path) -> None:
    file = export(
        tmp_path,
        series(STABLE, 200, {0: 1000, 15: 1100, 30: 1200, 45: 1300}),
        series(CANDIDATE, 200, {0: 0, 15: 10, 45: 30}, pod="c"),
    )
    assert counted(file) == [(0, 15, 0, (100, 0), (10, 0)), (15, 45, 0, (200, 0), (20, 0))]


def test_pods_that_come_and_go_are_counted_while_they_are_there(tmp_path: Path) -> None:
    file = export(
        tmp_path,
        series(STABLE, 200, {0: 1000, 15: 1100}, pod="a"),
        series(STABLE, 200, {15: 400, 30: 460}, pod="b"),
        series(CANDIDATE, 200, {0: 0, 15: 10, 30: 20}, pod="c"),
    )
    assert [(stable[0], candidate[0]) for *_, stable, candidate in counted(file)] == [(100, 10), (60, 10)]


def test_the_gateways_counters_name_the_namespace_with_the_revision(tmp_path: Path) -> None:
    def at_gateway(revision: str, values: dict[int, float]) -> dict:
        labels = {"envoy_cluster_name": f"serving/{revision}", "envoy_response_code": "200"}
        known = {"__name__": "envoy_cluster_upstream_rq", "instance": "10.0.0.2:9000", "job": "kourier"}
        return {"metric": known | labels, "values": [[T0 + t, str(value)] for t, value in values.items()]}

    file = export(tmp_path, at_gateway(STABLE, {0: 5, 15: 105}), at_gateway(CANDIDATE, {0: 0, 15: 6}))
    assert counted(file) == [(0, 15, 0, (100, 0), (6, 0))]


@pytest.mark.parametrize(
    ("result", "told"),
    [
        ([series(STABLE, 200, {0: 1})], f"no counts for revision {CANDIDATE}; it has {STABLE}"),
        ([{"metric": {"__name__": "up"}, "values": [[T0, "1"]]}], "no request counts by revision"),
        ([series(STABLE, 200, {0: 1.5}), series(CANDIDATE, 200, {0: 1})], "not its rate"),
        ([{"metric": {}, "value": [T0, "1"]}], "not an answer of Prometheus' query_range"),
    ],
)
def test_what_is_no_export_of_counters_is_refused_in_one_sentence(tmp_path: Path, result: list, told: str) -> None:
    with pytest.raises(UserError, match=told):
        read(export(tmp_path, *result), STABLE, CANDIDATE)


def test_replay_of_an_export(tmp_path: Path) -> None:
    times = range(0, 900, 15)
    file = export(
        tmp_path,
        series(STABLE, 200, {t: 95 * t for t in times}),
        series(STABLE, 500, {t: t for t in times}),
        series(CANDIDATE, 200, {t: 4 * t for t in times}, pod="c"),
        series(CANDIDATE, 500, {t: t for t in times}, pod="c"),
    )
    command = ["replay", str(file), "--profile", "fast"]
    told = CliRunner().invoke(cli, [*command, "--stable", STABLE, "--candidate", CANDIDATE]).output
    assert "rollback" in told
    assert "errors in 15 of 75 requests on the candidate" in told
    assert "--stable and --candidate" in str(CliRunner().invoke(cli, command).exception)


@pytest.mark.parametrize(("value", "told"), [("+Inf", "is inf at"), ("-5", "is -5 at")])
def test_a_counter_that_cannot_be_is_refused_in_one_sentence(tmp_path: Path, value: str, told: str) -> None:
    odd = series(STABLE, 200, {0: 1})
    odd["values"].append([T0 + 5, value])
    file = export(tmp_path, odd, series(CANDIDATE, 200, {0: 1, 5: 2}))
    with pytest.raises(UserError, match=f"revision_request_count {told}"):
        read(file, STABLE, CANDIDATE)
