"""The verdict on a candidate at 0 % traffic."""

import asyncio
import contextlib
import gzip
import math
import time

import pytest
from aiohttp import web

from serin import checks
from serin.checks import Answer, latency


def answers(*scores: float | None, latency_s: float = 0.003, status: int | None = 200) -> list[Answer]:
    return [Answer(status if score is not None else 500, latency_s, score) for score in scores]


GOOD = (0.1, 0.4, 0.7, 0.9)


def failed(candidate, stable=None, recorded=None) -> list[str]:
    return [check.name for check in checks.compare(candidate, stable, recorded) if not check.passed]


def test_the_same_answers_pass_every_check():
    found = checks.compare(answers(*GOOD), answers(*GOOD), GOOD)
    assert [check.name for check in found] == ["answers", "parity", "latency", "scores"]
    assert all(check.passed for check in found)


def test_the_first_model_is_held_against_its_recorded_scores_only():
    assert [check.name for check in checks.compare(answers(*GOOD), None, GOOD)] == ["answers", "parity"]
    assert [check.name for check in checks.compare(answers(*GOOD), None, None)] == ["answers"]


@pytest.mark.parametrize("bad", [answers(*GOOD[:3], None), [*answers(*GOOD[:3]), Answer(None, 10.0, None)], []])
def test_one_bad_answer_is_enough(bad):
    assert "answers" in failed(bad, answers(*GOOD))


def test_without_scores_nothing_is_said_about_their_size():
    assert "inf" not in " ".join(check.detail for check in checks.compare(answers(None, None), answers(*GOOD), GOOD))


def test_what_stable_cannot_answer_is_told_and_not_held_against_the_candidate():
    found = checks.compare(answers(*GOOD), answers(None, None, None, None), GOOD)
    assert all(check.passed for check in found)
    assert "(stable: 4 of 4)" in found[0].detail


def test_scores_must_be_those_training_recorded():
    assert failed(answers(0.1, 0.4, 0.7, 0.9 + 2 * checks.PARITY), answers(*GOOD), GOOD) == ["parity"]
    assert failed(answers(0.1, 0.4, 0.7, 0.9 + checks.PARITY / 2), answers(*GOOD), GOOD) == []


@pytest.mark.parametrize(
    ("ours_ms", "theirs_ms", "slow"), [(6.1, 1.0, True), (5.9, 1.0, False), (19, 10, False), (21, 10, True)]
)
def test_slow_means_twice_and_five_milliseconds(ours_ms, theirs_ms, slow):
    found = failed(answers(*GOOD, latency_s=ours_ms / 1000), answers(*GOOD, latency_s=theirs_ms / 1000), GOOD)
    assert found == (["latency"] if slow else [])


def test_scores_that_collapsed():
    assert failed(answers(0.97, 0.97, 0.97, 0.97), answers(*GOOD)) == ["scores"]
    assert failed(answers(0.4, 0.45, 0.55, 0.6), answers(*GOOD)) == []


async def served(*bodies: object) -> web.AppRunner:
    """A server that gives one body after the other; an exception is a connection cut off."""
    told = iter(bodies)

    async def predict(request: web.Request) -> web.Response:
        body = next(told)
        if callable(body):
            return await body(request)
        if isinstance(body, int):
            return web.json_response({"error": "no"}, status=body)
        if body is None:
            request.transport.close()
        return web.json_response(body)

    app = web.Application()
    app.router.add_post("/v1/models/churn:predict", predict)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner


def replayed(*bodies: object, timeout_s: float = 10, total_s: float = checks.TOTAL_S) -> list[Answer]:
    async def run() -> list[Answer]:
        runner = await served(*bodies)
        try:
            host, port = runner.addresses[0]
            asked, limits = [{"a": 1}] * len(bodies), {"timeout_s": timeout_s, "total_s": total_s}
            found, stable = await checks.replay(f"http://{host}:{port}", None, "churn", asked, **limits)
            assert stable is None
            return found
        finally:
            await runner.cleanup()

    return asyncio.run(run())


def test_whatever_a_server_says_is_an_answer():
    good = {"predictions": [{"probability": 0.25}]}
    odd = [
        {"predictions": [{"probability": math.nan}]},
        {"predictions": [{"probability": 1.5}]},
        {"predictions": [{"probability": "high"}]},
        {"predictions": []},
        {"predictions": None},
        ["no"],
        503,
        None,
    ]
    found = replayed(good, *odd)
    assert (found[0].status, found[0].score, found[0].good) == (200, 0.25, True)
    assert [answer.good for answer in found[1:]] == [False] * len(odd)
    assert [answer.status for answer in found[-2:]] == [503, None]


def test_an_answer_that_is_too_long_counts_as_none():
    (found,) = replayed({"predictions": [{"probability": 0.25, "padding": "x" * checks.MAX_ANSWER_BYTES}]})
    assert (found.status, found.good) == (None, False)


def test_what_the_server_says_of_a_record_is_kept_within_bounds():
    (found,) = replayed({"error": "Unknown field 'a'." + "x" * 10_000})
    assert found.error.startswith("Unknown field 'a'.") and len(found.error) == checks.MAX_ERROR


def test_a_candidate_that_takes_all_the_time_is_not_asked_to_the_end():
    good = {"predictions": [{"probability": 0.25}]}
    found = replayed(*[good] * 50, total_s=0.0)
    assert [answer.good for answer in found] == [False]


def test_requests_that_stable_answers_must_be_answered():
    refused = Answer(400, 0.003, None, "Unknown field 'zip'.")
    check = checks.accepted([refused, *answers(0.4, None)], answers(0.1, 0.4, None))
    assert (check.name, check.passed) == ("requests", False)
    failure = "the first failure: Unknown field 'zip'."
    assert check.detail == f"1 of 2 requests answered by stable were also answered; {failure}"
    assert checks.accepted(answers(0.1, None), answers(0.2, None)).passed
    assert "no answer" in checks.accepted([Answer(None, 1, None, "TimeoutError")], answers(0.1)).detail


def test_a_hopeless_candidate_is_not_asked_to_the_end():
    assert len(replayed(*[500] * 100)) == checks.MAX_RECORDS // 10 + 1


def test_nobody_there_is_an_answer_too():
    found, _ = asyncio.run(checks.replay("http://127.0.0.1:1", None, "churn", [{}]))
    assert [answer.status for answer in found] == [None]


def test_what_floods_drips_is_packed_or_nested_is_no_answer():
    sent = []

    async def flood(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            for _ in range(512):
                await response.write(b" " * 2**20)
                sent.append(2**20)
        return response

    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            for _ in range(200):
                await response.write(b" ")
                await asyncio.sleep(0.05)
        return response

    async def nested(request: web.Request) -> web.Response:
        return web.Response(text="[" * 60_000)

    async def packed(request: web.Request) -> web.Response:
        return web.Response(body=gzip.compress(b" " * 2**24), headers={"Content-Encoding": "gzip"})

    start = time.perf_counter()
    found = replayed(flood, drip, nested, packed, timeout_s=0.5)
    assert [answer.status for answer in found] == [None] * 4
    assert sum(sent) < 64 * 2**20
    assert time.perf_counter() - start < 8


def test_a_slow_candidate_is_called_slow() -> None:
    slow = latency([0.9, 1.0, 1.1], [0.001, 0.002, 0.003])
    assert (slow.passed, slow.detail) == (False, "too slow: median 1000.0 ms, stable 2.0 ms")
    assert latency([0.002], [0.002]).detail == "median 2.0 ms, stable 2.0 ms"
