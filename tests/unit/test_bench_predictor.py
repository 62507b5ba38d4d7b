"""The fuzzers' harness: it has to see what goes wrong."""

import asyncio
from pathlib import Path

import predictor_models as models
import pytest
import uvicorn
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from benchmarks.predictor_fuzz import Fuzzer, with_length
from benchmarks.predictor_fuzz_guided import answered, mutator, served
from predictor import server
from predictor.limits import Limits


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> uvicorn.Config:
    root: Path = tmp_path_factory.mktemp("model")
    models.write(root)
    return served(root)


def status(config: uvicorn.Config, request: bytes) -> str:
    return asyncio.run(answered(config, request))


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (b"GET /metrics HTTP/1.1\r\n\r\n", "200"),
        (b"GET / HTTP/1.1\r\n\r\nGET /x HTTP/1.1\r\n\r\n", "404"),
        (b"DELETE / HTTP/1.1\r\n\r\n", "405"),
        (b"rubbish\r\n\r\n", "400"),
        (b"POST /v1/models/churn:predict HTTP/1.1\r\nContent-Length: 5\r\n\r\n{", "cut off"),
        (b"POST /v1/models/churn:predict HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n{", "400"),
    ],
)
def test_the_worst_status_is_seen(config: uvicorn.Config, request_: bytes, expected: str) -> None:
    assert status(config, request_) == expected


def test_faults_are_seen() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/silent":
            return
        raise RuntimeError("boom")

    async def good(scope: Scope, receive: Receive, send: Send) -> None:
        await Response("a body with HTTP/1.1 500")(scope, receive, send)

    assert status(server.http(app, Limits()), b"GET /boom HTTP/1.1\r\n\r\n") == "500"
    assert status(server.http(app, Limits()), b"GET /silent HTTP/1.1\r\n\r\n") == "500"
    assert status(server.http(good, Limits()), b"GET / HTTP/1.1\r\n\r\n") == "200"


def test_mutants_repeat_and_reach_every_answer(config: uvicorn.Config) -> None:
    fuzzer = Fuzzer(1, "churn", models.RECORDS)
    mutate = mutator(models.RECORDS, lambda request, _: request[:-1] + b"\xff")
    valid = [fuzzer.valid() for _ in range(10)]
    assert {status(config, request) for request in valid} == {"200"}
    mutants = [mutate(valid[seed % 10], 4000, seed) for seed in range(300)]
    assert mutants == [mutate(valid[seed % 10], 4000, seed) for seed in range(300)]
    seen = {status(config, mutant) for mutant in mutants}
    assert {"200", "400"} <= seen and not seen & {"500", "none"}


def test_a_length_is_made_true() -> None:
    assert with_length(b"POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\nab").split(b"\r\n")[1] == b"Content-Length: 2"
