"""The candidate's digest reaches the model server with its model, in one change."""

from typing import Any

import pytest

from predictor import server
from serin.platforms.kserve.choreography import DIGEST, candidate_predictor
from serin.platforms.kserve.service import Service
from serin.rollout.document import Candidate, EnvVar


def env(candidate: Candidate, *before: dict[str, str]) -> Any:
    model = {"storageUri": "s3://models/1", "env": list(before)} if before else {"storageUri": "s3://models/1"}
    stable = Service(name="churn", resource_version="1", predictor={"model": model})
    return candidate_predictor(stable, candidate)["model"].get("env")


def variable(name: str, value: str) -> dict[str, str]:
    return {"name": name, "value": value}


def test_a_digest_is_part_of_the_candidate() -> None:
    given = Candidate(storage_uri="s3://models/2", digest="sha256:2", env=(EnvVar(name="SERIN_A", value="2"),))
    kept = variable("B", "1")
    wanted = [kept, variable("SERIN_A", "2"), variable(DIGEST, "sha256:2")]
    assert env(given, variable("SERIN_A", "1"), kept, variable(DIGEST, "sha256:1")) == wanted
    assert candidate_predictor(None, given)["model"]["env"] == wanted[1:]


def test_the_digest_of_stable_is_not_asked_of_a_candidate_without_one() -> None:
    given = Candidate(storage_uri="s3://models/2")
    assert env(given, variable("A", "1"), variable(DIGEST, "sha256:1")) == [variable("A", "1")]
    assert env(given, variable(DIGEST, "sha256:1")) is None
    assert env(given) is None


def test_the_model_server_finds_it_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DIGEST, "sha256:2")
    arguments = server.parser("predictor").parse_args(
        ["--model-name", "churn", "--model-dir", "/m", "--revision", "r"]
    )
    assert arguments.digest == "sha256:2"
