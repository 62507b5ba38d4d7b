"""The HTTP side: KServe's V1 and V2 endpoints, health and metrics, as one ASGI application.

`application` answers; `Observed` goes around it (and around a drill's fault) and sees every request whole.
"""

import asyncio
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import orjson
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from predictor import v1, v2
from predictor.bodies import Bodies
from predictor.columns import Batch
from predictor.errors import Busy, ClientError, NotFound, UnsupportedEncoding
from predictor.explain import MAX_ROWS as EXPLAIN_ROWS
from predictor.explain import Explainer
from predictor.limits import DEFAULTS, Limits
from predictor.log import Entry, PredictionLog
from predictor.scorer import Scores
from predictor.telemetry import Telemetry

logger = logging.getLogger("predictor")

_REQUEST_ID: Final = re.compile(rb"[\x21-\x7e]{1,128}")
_INFERENCE: Final = re.compile(r"/v1/models/[^/]+:(predict|explain)|/v2/models/[^/]+(/versions/[^/]+)?/infer")
JSON_LENGTH: Final = "Inference-Header-Content-Length"
REQUEST_ID: Final = "serin.request_id"
"""The request's id in its ASGI scope."""
CROWDED: Final = "serin.crowded"
"""In the ASGI scope of a request above the number of those that are served at once: inference is refused then, so
that health and metrics are always answered."""
INLINE_BYTES: Final = 32 * 2**10
INLINE_VALUES: Final = 1000
"""A request with more is answered in a thread, so that small ones and health need not wait for it; every explanation
is."""
LARGE_BYTES: Final = 2**20
"""A larger request is decoded while no other one is: parsed it may take twenty times its bytes. No time is lost, as
decoding holds the interpreter's lock anyway."""
_decoding_large: Final = threading.Lock()
_CLIENT_CLOSED: Final = 499
"""nginx's status for a client that went away before its answer; it is no fault of the server."""


@dataclass
class Health:
    """What the probes see: `ready` turns false while the server drains."""

    ready: bool = True


@dataclass(frozen=True, slots=True)
class Service:
    """One revision of one model."""

    model: str
    revision: str
    digest: str
    scores: Scores
    telemetry: Telemetry
    health: Health
    limits: Limits = DEFAULTS
    log: PredictionLog | None = None
    explainer: Explainer | None = None

    def record(self, request_id: str, size_bytes: int, batch: Batch, scores: NDArray[Any]) -> None:
        """`size_bytes`: of the request."""
        self.telemetry.add_scores(scores)
        if self.log:
            self.log.add(Entry(request_id, time.time(), batch, scores, size_bytes))


@dataclass(frozen=True, slots=True)
class Answer:
    """`json_length`: the length of the JSON part of `body` if binary tensors follow it."""

    batch: Batch
    scores: NDArray[Any]
    body: bytes
    json_length: int | None = None


def check_model(service: Service, model: str, version: str = "") -> None:
    """A model's version is its revision; without one any is meant. Raises `NotFound`."""
    if model != service.model:
        raise NotFound(f"Model {model!r} is not served here; this server has {service.model!r}.")
    if version not in ("", service.revision):
        raise NotFound(
            f"Version {version!r} of model {model!r} is not served here; this server has {service.revision!r}."
        )


_T = TypeVar("_T")


def decoded(size_bytes: int, decode: Callable[[], _T]) -> _T:
    """What `decode` makes of a request of so many bytes. Raises `ClientError`."""
    if size_bytes <= LARGE_BYTES:
        return decode()
    with _decoding_large:
        try:
            return decode()
        except ClientError as error:
            raise error.with_traceback(None) from None  # its frames hold what was parsed


def application(service: Service) -> Router:
    """Raises `ClientError`."""
    signature, layout, max_rows = service.scores.signature, service.scores.layout, service.limits.rows

    bodies = Bodies(service.limits)

    async def respond(request: Request, answer: Callable[[bytes], Answer]) -> Response:
        _check(service, request)
        with bodies.body() as kept:
            body = await kept.read(request.stream())
            values = len(body) if JSON_LENGTH in request.headers else body.count(b",", 0, INLINE_BYTES)
            small = len(body) <= INLINE_BYTES and values <= INLINE_VALUES
            given = answer(body) if small else await asyncio.to_thread(answer, body)
        service.record(request.scope[REQUEST_ID], len(body), given.batch, given.scores)
        if given.json_length is None:
            return _json_bytes(given.body)
        headers = {JSON_LENGTH: str(given.json_length)}
        return Response(given.body, media_type="application/octet-stream", headers=headers)

    async def predict(request: Request) -> Response:
        def answer(body: bytes) -> Answer:
            batch = decoded(len(body), lambda: v1.decode(body, layout, max_rows))
            scores = service.scores.score(batch)
            return Answer(batch, scores, v1.encode(signature, scores))

        return await respond(request, answer)

    async def infer(request: Request) -> Response:
        def answer(body: bytes) -> Answer:
            json_length = request.headers.get(JSON_LENGTH)
            asked = decoded(len(body), lambda: v2.decode(body, json_length, layout, signature, max_rows))
            scores = service.scores.score(asked.batch)
            names = service.model, service.revision, request.scope[REQUEST_ID]
            return Answer(asked.batch, scores, *v2.encode(*names, asked, signature, scores))

        return await respond(request, answer)

    async def explain(request: Request) -> Response:
        explainer = service.explainer
        if explainer is None:
            raise NotFound(f"Model {service.model!r} has no explanation: it was exported without one.")

        def answer(body: bytes) -> bytes:
            batch = decoded(len(body), lambda: v1.decode(body, layout, min(max_rows, EXPLAIN_ROWS)))
            scores = service.scores.score(batch)
            return v1.encode_explanations(signature, scores, explainer.explain(batch, scores))

        _check(service, request)
        with bodies.body() as kept:
            body = await kept.read(request.stream())
            return _json_bytes(await asyncio.to_thread(answer, body))

    async def alive(request: Request) -> Response:
        return _json({"status": "alive"})

    async def live(request: Request) -> Response:
        return _json({"live": True})

    async def ready(request: Request) -> Response:
        return _json({"ready": service.health.ready}, 200 if service.health.ready else 503)

    async def model_ready(request: Request) -> Response:
        check_model(service, **request.path_params)
        return _json({"name": service.model, "ready": service.health.ready}, 200 if service.health.ready else 503)

    async def models(request: Request) -> Response:
        return _json({"models": [service.model]})

    async def model_metadata(request: Request) -> Response:
        check_model(service, **request.path_params)
        return _json(v2.metadata(service.model, service.revision, signature))

    async def server_metadata(request: Request) -> Response:
        return _json(v2.server_metadata())

    async def metrics(request: Request) -> Response:
        return Response(service.telemetry.prometheus(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def compact_metrics(request: Request) -> Response:
        return _json_bytes(service.telemetry.compact())

    return Router(
        routes=[
            Route("/v1/models/{model}:predict", predict, methods=["POST"]),
            Route("/v2/models/{model}/infer", infer, methods=["POST"]),
            Route("/v1/models/{model}:explain", explain, methods=["POST"]),
            Route("/metrics/serin.json", compact_metrics),
            Route("/metrics", metrics),
            Route("/v2/models/{model}/ready", model_ready),
            Route("/v2/models/{model}/versions/{version}/infer", infer, methods=["POST"]),
            Route("/v2/models/{model}/versions/{version}/ready", model_ready),
            Route("/v2/models/{model}/versions/{version}", model_metadata),
            Route("/v2/health/ready", ready),
            Route("/v2/health/live", live),
            Route("/", alive),
            Route("/v1/models", models),
            Route("/v1/models/{model}", model_ready),
            Route("/v2", server_metadata),
            Route("/v2/models", models),
            Route("/v2/models/{model}", model_metadata),
        ],
        default=_not_found,
        redirect_slashes=False,
    )


def _json(value: object, status: int = 200) -> Response:
    return _json_bytes(orjson.dumps(value), status)


def _json_bytes(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json")


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    raise NotFound(f"Path {scope['path']!r} is not served here.")


def _check(service: Service, request: Request) -> None:
    """Raises `NotFound` or `UnsupportedEncoding`."""
    check_model(service, **request.path_params)
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() not in ("identity", ""):
        raise UnsupportedEncoding(f"Header Content-Encoding: expected none, got {encoding!r}.")


async def _crowded(scope: Scope, receive: Receive, send: Send) -> None:
    raise Busy("Too many requests are waiting; retry in a second.")


class Observed:
    """Counts and times inference requests, names revision, digest and request in every answer, and answers what
    the application raises: `ClientError` with its status, anything else with 500."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._telemetry, self._health = app, service.telemetry, service.health
        self._headers = identity_headers(service)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.perf_counter()
        request_id = request_id_of(scope["headers"])
        scope[REQUEST_ID] = request_id.decode()
        status = 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *self._headers, (b"x-request-id", request_id)]
                if not self._health.ready:
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            crowded = CROWDED in scope and scope["method"] == "POST"
            await (_crowded if crowded else self._app)(scope, receive, send_named)
        except ClientError as error:
            response = _json({"error": str(error)}, error.status)
            if isinstance(error, Busy):
                response.headers.update({"Retry-After": "1", "Connection": "close"})
            await response(scope, receive, send_named)
        except ClientDisconnect:
            status = status or _CLIENT_CLOSED
        except Exception:  # a bug, whatever it is: this client gets its 500 with the request's id, the others go on
            logger.exception("request %s failed", scope[REQUEST_ID])
            if not status:
                response = _json({"error": "Internal error; the server's log has it under the request id."}, 500)
                await response(scope, receive, send_named)
            status = 500
        finally:
            if scope["method"] == "POST" and _INFERENCE.fullmatch(scope["path"]):
                self._telemetry.add_request(status or 500, time.perf_counter() - started_s)


def identity_headers(service: Service) -> list[tuple[bytes, bytes]]:
    return [(b"x-serin-revision", service.revision.encode()), (b"x-serin-model-digest", service.digest.encode())]


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The client's own id when it is fit for a header, else a new one."""
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return bytes(value)
    return secrets.token_hex(16).encode()
