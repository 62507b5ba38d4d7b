"""The Open Inference Protocol over gRPC; needs grpcio and protobuf, so import it only where gRPC is asked for."""

import asyncio
import logging
import time
from typing import Any, Final, TypeVar

import grpc  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from predictor import answers, v2
from predictor import inference_pb2 as pb
from predictor.app import Service, check_model, decoded, identity_headers, request_id_of
from predictor.columns import Batch
from predictor.errors import ClientError, InvalidInput, TooLarge
from predictor.inbox import Inbox
from serin.errors import UserError

logger = logging.getLogger("predictor")

SERVICE: Final = "inference.GRPCInferenceService"
INLINE_BYTES: Final = 4 * 2**10
"""A larger message is answered in a thread: each byte of it may be a row."""
IDLE_MS: Final = 300_000
AGE_MS: Final = 3_600_000
"""After which a connection is ended in peace, whatever its client leaves unread; clients open another themselves."""
_CALLS: Final = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
_CONTENTS: Final = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""The field that holds a datatype's values; FP16 has none and comes as raw contents only."""
_CODES: Final = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
}

_M = TypeVar("_M", bound=Message)


async def start(service: Service, host: str, port: int) -> grpc.aio.Server:
    """Raises `UserError` when the port is taken."""
    limits = service.limits
    options = {
        "grpc.so_reuseport": 0,
        "grpc.http2.bdp_probe": 0,  # else megabytes of messages that nobody reads yet are let in
        "grpc.max_receive_message_length": limits.body_bytes,
        "grpc.max_allowed_incoming_connections": limits.connections,
        "grpc.max_concurrent_streams": limits.connections,
        "grpc.max_connection_idle_ms": IDLE_MS,
        "grpc.max_connection_age_ms": AGE_MS,
        "grpc.max_connection_age_grace_ms": int(limits.answer_s * 1000),
        "grpc.server_handshake_timeout_ms": int(limits.head_s * 1000),
    }
    server = grpc.aio.server(options=list(options.items()), maximum_concurrent_rpcs=limits.connections)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, _handlers(Servicer(service))),))
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise UserError(f"Cannot listen on {address}; pass another --grpc-port.") from error
    await server.start()
    return server


def _handlers(servicer: "Servicer") -> dict[str, grpc.RpcMethodHandler]:
    """By the call's name. Those that load and unload models are left out: gRPC answers UNIMPLEMENTED.

    On the wire they are what they are, unary; as streams of one message they are read when we want to.
    """
    return {
        name: grpc.stream_unary_rpc_method_handler(
            getattr(servicer, name),
            response_serializer=getattr(pb, f"{name}Response").SerializeToString,
        )
        for name in _CALLS
    }


class Servicer:
    """The protocol's calls."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._signature = service.scores.signature
        self._inbox = Inbox(service.limits)
        self._identity = [(name.decode(), value.decode()) for name, value in identity_headers(service)]

    async def ServerLive(self, _: object, context: grpc.aio.ServicerContext) -> pb.ServerLiveResponse:
        await self._read(context, pb.ServerLiveRequest)
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, _: object, context: grpc.aio.ServicerContext) -> pb.ServerReadyResponse:
        await self._read(context, pb.ServerReadyRequest)
        return pb.ServerReadyResponse(ready=self._service.health.ready)

    async def ModelReady(self, _: object, context: grpc.aio.ServicerContext) -> pb.ModelReadyResponse:
        request = await self._read(context, pb.ModelReadyRequest)
        await self._check_model(request.name, request.version, context)
        return pb.ModelReadyResponse(ready=self._service.health.ready)

    async def ServerMetadata(self, _: object, context: grpc.aio.ServicerContext) -> pb.ServerMetadataResponse:
        await self._read(context, pb.ServerMetadataRequest)
        return pb.ServerMetadataResponse(**v2.server_metadata())

    async def ModelMetadata(self, _: object, context: grpc.aio.ServicerContext) -> pb.ModelMetadataResponse:
        request = await self._read(context, pb.ModelMetadataRequest)
        await self._check_model(request.name, request.version, context)
        return pb.ModelMetadataResponse(**v2.metadata(self._service.model, self._service.revision, self._signature))

    async def ModelInfer(self, _: object, context: grpc.aio.ServicerContext) -> pb.ModelInferResponse:
        started_s = time.perf_counter()
        request_id = request_id_of((name.encode(), value) for name, value in _headers(context)).decode()
        await context.send_initial_metadata((*self._identity, ("x-request-id", request_id)))
        status = 500
        try:
            async with self._inbox.message(context) as data:
                if len(data) <= INLINE_BYTES:
                    batch, scores, response = self._infer(data, request_id)
                else:
                    batch, scores, response = await asyncio.to_thread(self._infer, data, request_id)
            self._service.record(request_id, len(data), batch, scores)
            status = 200
        except ClientError as error:
            status = error.status
            await context.abort(_CODES[status], str(error))
        except Exception:  # a bug, whatever it is: gRPC would send the client its text; the log names the request
            logger.exception("request %s failed", request_id)
            await context.abort(
                grpc.StatusCode.INTERNAL, "Internal error; the server's log has it under the request id."
            )
        finally:
            self._service.telemetry.add_request(status, time.perf_counter() - started_s)
        return response

    async def _read(self, context: grpc.aio.ServicerContext, kind: type[_M]) -> _M:
        try:
            async with self._inbox.message(context) as data:
                return _parsed(kind, data)
        except ClientError as error:
            await context.abort(_CODES[error.status], str(error))
            raise  # never reached: abort raises

    async def _check_model(self, name: str, version: str, context: grpc.aio.ServicerContext) -> None:
        try:
            check_model(self._service, name, version)
        except ClientError as error:
            await context.abort(_CODES[error.status], str(error))

    def _infer(self, data: bytes, request_id: str) -> tuple[Batch, NDArray[Any], pb.ModelInferResponse]:
        service, signature = self._service, self._signature
        request = _parsed(pb.ModelInferRequest, data)
        check_model(service, request.model_name, request.model_version)
        max_rows = service.limits.rows
        batch = decoded(len(data), lambda: v2.to_batch(_tensors(request, max_rows), service.scores.layout, max_rows))
        outputs = v2.requested([output.name for output in request.outputs], signature)
        scores = service.scores.score(batch)
        response = pb.ModelInferResponse(
            model_name=service.model, model_version=service.revision, id=request.id or request_id
        )
        columns, datatypes = answers.columns(signature, scores), answers.datatypes(signature)
        for name in outputs:
            output = response.outputs.add(name=name, datatype=datatypes[name], shape=[batch.rows])
            if request.raw_input_contents:
                response.raw_output_contents.append(v2.to_bytes(datatypes[name], columns[name]))
            elif datatypes[name] == "BYTES":
                output.contents.bytes_contents.extend(value.encode() for value in columns[name])
            else:
                getattr(output.contents, _CONTENTS[datatypes[name]]).extend(columns[name])
        return batch, scores, response


def _headers(context: grpc.aio.ServicerContext) -> list[tuple[str, bytes]]:
    """Text values of the call's metadata; binary ones are no headers of ours."""
    return [(name, value.encode()) for name, value in context.invocation_metadata() or () if isinstance(value, str)]


def _parsed(kind: type[_M], data: bytes) -> _M:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidInput(f"The message: expected {kind.__name__}, got something else ({error}).") from error


def _tensors(request: pb.ModelInferRequest, max_rows: int) -> list[v2.Tensor]:
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidInput(
            f"Field 'raw_input_contents': expected {len(request.inputs)} tensors as in 'inputs', got {len(raw)}."
        )
    if raw and (doubled := next((tensor for tensor in request.inputs if tensor.contents.ListFields()), None)):
        raise InvalidInput(
            f"Tensor {doubled.name!r}: expected no 'contents' beside 'raw_input_contents', got values in both."
        )
    contents = raw or [_contents(tensor, max_rows) for tensor in request.inputs]
    return [
        v2.Tensor(tensor.name, tensor.datatype, list(tensor.shape), data)
        for tensor, data in zip(request.inputs, contents, strict=True)
    ]


def _contents(tensor: pb.ModelInferRequest.InferInputTensor, max_rows: int) -> list[Any]:
    if tensor.datatype == "FP16":
        raise InvalidInput(f"Tensor {tensor.name!r}: expected FP16 in 'raw_input_contents', got it in 'contents'.")
    field = getattr(tensor.contents, _CONTENTS[tensor.datatype]) if tensor.datatype in _CONTENTS else []
    if len(field) > max_rows:
        raise TooLarge(f"Tensor {tensor.name!r}: expected at most {max_rows} values, got {len(field)}.")
    values = list(field)
    if tensor.datatype != "BYTES":
        return values
    try:
        return [value.decode("utf-8") for value in values]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"Tensor {tensor.name!r}: expected UTF-8, got {error.reason}.") from error
