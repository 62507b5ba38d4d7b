"""How the server ends when the user has to act."""

import argparse
import asyncio
import sys
from pathlib import Path

import pytest
import uvicorn

import predictor
from predictor import server
from serin.errors import UserError

REASON = "Model x: file y is missing; export the model again."


def refuse(arguments: argparse.Namespace) -> None:
    raise UserError(REASON)


@pytest.fixture
def message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr("sys.argv", ["predictor"])
    path = tmp_path / "termination-log"
    monkeypatch.setattr(server, "TERMINATION_MESSAGE", path)
    return path


def test_the_reason_is_the_termination_message(message: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message.touch()
    assert server.main(argparse.ArgumentParser(), refuse) == 2
    assert message.read_text() == capsys.readouterr().err.strip() == REASON


def test_the_reason_is_nothing_but_text(message: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse_forged(arguments: argparse.Namespace) -> None:
        raise UserError("Model x: input '\x1b[2J\nforged' is unknown; export the model again.")

    message.touch()
    assert server.main(argparse.ArgumentParser(), refuse_forged) == 2
    written = capsys.readouterr().err
    assert written.rstrip("\n").isprintable() and message.read_text() == written.rstrip("\n")


def test_no_file_is_made_outside_kubernetes(message: Path) -> None:
    assert server.main(argparse.ArgumentParser(), refuse) == 2
    assert not message.exists()


def test_a_bad_argument_is_the_users_to_fix(message: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message.touch()
    monkeypatch.delenv("K_REVISION", raising=False)
    monkeypatch.setattr("sys.argv", ["predictor", "--model-name", "churn", "--model-dir", "/mnt/models"])
    assert server.main(server.parser("predictor"), refuse) == 2
    assert message.read_text() == "predictor: the following arguments are required: --revision."


def test_knative_names_the_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K_REVISION", "churn-predictor-00007")
    arguments = server.parser("predictor").parse_args(["--model-name", "churn", "--model-dir", "/mnt/models"])
    assert arguments.revision == "churn-predictor-00007"


def test_grpc_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    monkeypatch.delitem(sys.modules, "predictor.rpc", raising=False)
    monkeypatch.delattr(predictor, "rpc", raising=False)
    waiting = server._Server(uvicorn.Config("no:app"), None, drain_s=1, grpc_port=8081)
    with pytest.raises(UserError, match="grpc is not installed"):
        asyncio.run(waiting.startup())
