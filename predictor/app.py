"""The HTTP side: KServe's V1 and V2 endpoints, health and metrics, as one ASGI application.

`application` answers; `Observed` goes around it (and around a drill's fault) and sees every request whole.
"""

import logging
import re
import time
import uuid
from dataclasses import dataclass
from typing import Any, Final

import orjson
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from predictor import v1, v2
from predictor.columns import Batch
from predictor.errors import ClientError, NotFound, TooLarge, UnsupportedEncoding
from predictor.scorer import Scores
from predictor.telemetry import Telemetry

logger = logging.getLogger("predictor")

_REQUEST_ID: Final = re.compile(rb"[\x21-\x7e]{1,128}")
_INFERENCE: Final = re.compile(r"/v1/models/[^/]+:predict|/v2/models/[^/]+/infer")
_JSON_LENGTH: Final = "Inference-Header-Content-Length"
_CLIENT_CLOSED: Final = 499
"""nginx's status for a client that went away before its answer; it is no fault of the server."""


@dataclass
class Health:
    """What the probes see: `ready` turns false while the server drains."""

    ready: bool = True


@dataclass(frozen=True, slots=True)
class Limits:
    body_bytes: int = 8 * 2**20
    rows: int = 10_000


@dataclass(frozen=True, slots=True)
class Service:
    """One model under one name."""

    name: str
    scores: Scores
    telemetry: Telemetry
    health: Health
    limits: Limits

    def score(self, batch: Batch) -> NDArray[Any]:
        scores = self.scores.score(batch)
        self.telemetry.add_scores(scores)
        return scores


def application(service: Service) -> Router:
    """Raises `ClientError`."""
    signature, layout, max_rows = service.scores.signature, service.scores.layout, service.limits.rows

    def check_model(request: Request) -> None:
        name = request.path_params["model"]
        if name != service.name:
            raise NotFound(f"Model {name!r} is not here: this server has {service.name!r}.")

    async def read(request: Request) -> bytes:
        check_model(request)
        return await _body(request, service.limits.body_bytes)

    async def predict(request: Request) -> Response:
        batch = v1.decode(await read(request), layout, max_rows)
        return _json_bytes(v1.encode(signature, service.score(batch)))

    async def infer(request: Request) -> Response:
        body, json_length = await read(request), request.headers.get(_JSON_LENGTH)
        decoded = v2.decode(body, json_length, layout, signature, max_rows)
        answer, json_length_out = v2.encode(
            service.name, request.scope["serin.request_id"], decoded, signature, service.score(decoded.batch)
        )
        if json_length_out is None:
            return _json_bytes(answer)
        return Response(answer, media_type="application/octet-stream", headers={_JSON_LENGTH: str(json_length_out)})

    async def alive(request: Request) -> Response:
        return _json({"status": "alive"})

    async def live(request: Request) -> Response:
        return _json({"live": True})

    async def ready(request: Request) -> Response:
        return _json({"ready": service.health.ready}, 200 if service.health.ready else 503)

    async def model_ready(request: Request) -> Response:
        check_model(request)
        return _json({"name": service.name, "ready": service.health.ready}, 200 if service.health.ready else 503)

    async def models(request: Request) -> Response:
        return _json({"models": [service.name]})

    async def model_metadata(request: Request) -> Response:
        check_model(request)
        return _json(v2.metadata(service.name, signature))

    async def server_metadata(request: Request) -> Response:
        return _json({"name": "serin", "version": "1", "extensions": v2.EXTENSIONS})

    async def metrics(request: Request) -> Response:
        return Response(service.telemetry.prometheus(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def compact_metrics(request: Request) -> Response:
        return _json_bytes(service.telemetry.compact())

    return Router(
        routes=[
            Route("/v1/models/{model}:predict", predict, methods=["POST"]),
            Route("/v2/models/{model}/infer", infer, methods=["POST"]),
            Route("/metrics/serin.json", compact_metrics),
            Route("/metrics", metrics),
            Route("/v2/models/{model}/ready", model_ready),
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


async def _body(request: Request, limit_bytes: int) -> bytes:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise UnsupportedEncoding(f"Header Content-Encoding: expected none, got {encoding!r}.")
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit_bytes:
            raise TooLarge(f"The body: expected at most {limit_bytes} bytes, got more.")
        parts.append(part)
    return b"".join(parts)


class Observed:
    """Counts and times inference requests, names revision, digest and request in every answer, and answers what
    the application raises: `ClientError` with its status, anything else with 500."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry, health: Health, *, revision: str, digest: str) -> None:
        self._app, self._telemetry, self._health = app, telemetry, health
        self._headers = [(b"x-serin-revision", revision.encode()), (b"x-serin-model-digest", digest.encode())]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.perf_counter()
        request_id = _request_id(scope)
        scope["serin.request_id"] = request_id.decode()
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
            await self._app(scope, receive, send_named)
        except ClientError as error:
            await _json({"error": str(error)}, error.status)(scope, receive, send_named)
        except ClientDisconnect:
            status = status or _CLIENT_CLOSED
        except Exception:
            logger.exception("request %s failed", scope["serin.request_id"])
            if not status:
                response = _json({"error": "The server failed; the request id names it in its log."}, 500)
                await response(scope, receive, send_named)
            status = 500
        finally:
            if _INFERENCE.fullmatch(scope["path"]):
                self._telemetry.add_request(status, time.perf_counter() - started_s)


def _request_id(scope: Scope) -> bytes:
    """The client's own id when it is fit for a header, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return bytes(value)
    return uuid.uuid4().hex.encode()
