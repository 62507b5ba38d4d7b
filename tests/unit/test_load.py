"""The open-loop load generator: requests leave on schedule, every answer is counted."""

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from serin import load

RECORDS = ({"n": 1}, {"n": 2}, {"n": 3})
Handler = Callable[[web.Request], Awaitable[web.Response]]


def test_the_schedule_keeps_the_rate():
    due = list(itertools.islice(load._schedule(50), 101))
    assert due[100] - due[0] == pytest.approx(2.0)
    assert all(later - earlier == pytest.approx(0.02) for earlier, later in itertools.pairwise(due))


def sent_to(predict: Handler, *, enough: int, rate: float = 2000, timeout_s: float = 10) -> load.Tally:
    """Load until `enough` requests have come in."""

    async def run() -> load.Tally:
        stop, seen, tally = asyncio.Event(), itertools.count(1), load.Tally()

        async def counted(request: web.Request) -> web.Response:
            if next(seen) == enough:
                stop.set()
            return await predict(request)

        app = web.Application()
        app.router.add_post("/v1/models/churn:predict", counted)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host, port = runner.addresses[0]
            await asyncio.wait_for(
                load.run(
                    f"http://{host}:{port}", "churn", RECORDS, rate=rate, stop=stop, tally=tally, timeout_s=timeout_s
                ),
                30,
            )
        finally:
            await runner.cleanup()
        return tally

    return asyncio.run(run())


def test_every_answer_is_counted_by_revision_and_status():
    statuses = itertools.cycle((200, 200, 503, 400))

    async def predict(request: web.Request) -> web.Response:
        return web.Response(status=next(statuses), headers={load.REVISION_HEADER: "churn-00001"})

    tally = sent_to(predict, enough=200)
    assert sum(tally.answers.values()) == tally.sent >= 200
    assert set(tally.answers) == {("churn-00001", status) for status in (200, 400, 503)}
    assert tally.failed == tally.answers["churn-00001", 503] + tally.answers["churn-00001", 400]
    document = tally.document()
    assert document["answered"] == document["sent"] == tally.sent and document["failed"] == tally.failed
    assert json.loads(json.dumps(document)) == document


def test_slow_answers_do_not_hold_up_the_requests():
    waiting, everybody = itertools.count(1), asyncio.Event()

    async def predict(request: web.Request) -> web.Response:
        if next(waiting) == 50:  # answered only once fifty wait at the same time
            everybody.set()
        await everybody.wait()
        return web.Response()

    tally = sent_to(predict, enough=50)
    assert tally.answers["", 200] == tally.sent >= 50


def test_no_answer_is_counted_as_one():
    async def predict(request: web.Request) -> web.Response:
        request.transport.close()
        return web.Response()

    tally = sent_to(predict, enough=20)
    assert tally.answers == {("", load.NO_ANSWER): tally.sent} and tally.failed == tally.sent


def test_the_records_take_turns():
    seen: list[int] = []

    async def predict(request: web.Request) -> web.Response:
        seen.append((await request.json())["instances"][0]["n"])
        return web.Response()

    tally = sent_to(predict, enough=30)
    assert {n: seen.count(n) for n in (1, 2, 3)} == {n: len(range(n - 1, tally.sent, 3)) for n in (1, 2, 3)}


def test_the_count_is_kept_in_a_file(tmp_path):
    out = tmp_path / "load.json"
    tally = asyncio.run(load.run_to_file("http://127.0.0.1:1", "churn", RECORDS, rate=100, seconds=0.2, out=out))
    document = json.loads(out.read_text(encoding="utf-8"))
    assert document["sent"] == tally.sent > 0 and document["failed"] == tally.sent
    assert not list(tmp_path.glob("*.partial"))


def test_what_no_model_answers_is_told_while_it_happens(tmp_path):
    file = tmp_path / "load.json"
    losses = load.Losses(file)

    def told(at_s: float, tally: load.Tally) -> str | None:
        file.write_text(json.dumps(tally.document()), encoding="utf-8")
        return losses.recent(at_s)

    assert losses.recent(0) is None
    tally = load.Tally(sent=1000, answers=Counter({("churn-1", 200): 900, ("churn-2", 500): 90, ("", 0): 10}))
    assert told(1, tally) is None, "what was before it looked is not known to be recent"
    tally.answers.update({("churn-1", 200): 1000, ("churn-2", 500): 100})
    assert told(2, tally) is None, "a model that fails is the judge's business"
    tally.answers.update({("", 0): 2000, ("", 503): 400, ("churn-1", 200): 100})
    assert told(5, tally) == ("2,400 of the load generator's last 3,600 requests (4 s) got no answer from a model")
    tally.answers.update({("churn-1", 200): 5000})
    for second in range(6, 15):
        assert told(second, tally) is not None
    assert told(15, tally) is None, "it is over"
