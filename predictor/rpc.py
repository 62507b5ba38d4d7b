"""The Open Inference Protocol over gRPC; needs grpcio and protobuf, so import it only where gRPC is asked for."""

import asyncio
import logging
import time
from typing import Any, Final

import grpc  # type: ignore[import-untyped]
from numpy.typing import NDArray

from predictor import answers, v2
from predictor import inference_pb2 as pb
from predictor.app import INLINE_BYTES, Service, check_model, identity_headers, request_id_of
from predictor.columns import Batch
from predictor.errors import ClientError, InvalidInput
from serin.errors import UserError

logger = logging.getLogger("predictor")

SERVICE: Final = "inference.GRPCInferenceService"
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
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
}


async def start(service: Service, host: str, port: int) -> grpc.aio.Server:
    """Raises `UserError` when the port is taken."""
    server = grpc.aio.server(
        options=[("grpc.max_receive_message_length", service.limits.body_bytes), ("grpc.so_reuseport", 0)]
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, _handlers(Servicer(service))),))
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise UserError(f"Cannot listen on {address}; pass another --grpc-port.") from error
    await server.start()
    return server


def _handlers(servicer: "Servicer") -> dict[str, grpc.RpcMethodHandler]:
    """By the call's name. Those that load and unload models are left out: gRPC answers UNIMPLEMENTED."""
    return {
        name: grpc.unary_unary_rpc_method_handler(
            getattr(servicer, name),
            request_deserializer=getattr(pb, f"{name}Request").FromString,
            response_serializer=getattr(pb, f"{name}Response").SerializeToString,
        )
        for name in _CALLS
    }


class Servicer:
    """The protocol's calls."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._signature = service.scores.signature
        self._identity = [(name.decode(), value.decode()) for name, value in identity_headers(service)]

    async def ServerLive(
        self, request: pb.ServerLiveRequest, context: grpc.aio.ServicerContext
    ) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: pb.ServerReadyRequest, context: grpc.aio.ServicerContext
    ) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._service.health.ready)

    async def ModelReady(
        self, request: pb.ModelReadyRequest, context: grpc.aio.ServicerContext
    ) -> pb.ModelReadyResponse:
        await self._check_model(request.name, request.version, context)
        return pb.ModelReadyResponse(ready=self._service.health.ready)

    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: grpc.aio.ServicerContext
    ) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(**v2.server_metadata())

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: grpc.aio.ServicerContext
    ) -> pb.ModelMetadataResponse:
        await self._check_model(request.name, request.version, context)
        return pb.ModelMetadataResponse(**v2.metadata(self._service.model, self._service.revision, self._signature))

    async def ModelInfer(
        self, request: pb.ModelInferRequest, context: grpc.aio.ServicerContext
    ) -> pb.ModelInferResponse:
        started_s = time.perf_counter()
        request_id = request_id_of((name.encode(), value) for name, value in _headers(context)).decode()
        await context.send_initial_metadata((*self._identity, ("x-request-id", request_id)))
        status = 500
        try:
            size_bytes = request.ByteSize()
            if size_bytes <= INLINE_BYTES:
                batch, scores, response = self._infer(request, request_id)
            else:
                batch, scores, response = await asyncio.to_thread(self._infer, request, request_id)
            self._service.record(request_id, size_bytes, batch, scores)
            status = 200
        except ClientError as error:
            status = error.status
            await context.abort(_CODES[status], str(error))
        except Exception:  # a bug, whatever it is: gRPC would send the client its text; the log names the request
            logger.exception("request %s failed", request_id)
            await context.abort(grpc.StatusCode.INTERNAL, "The server failed; the request id names it in its log.")
        finally:
            self._service.telemetry.add_request(status, time.perf_counter() - started_s)
        return response

    async def _check_model(self, name: str, version: str, context: grpc.aio.ServicerContext) -> None:
        try:
            check_model(self._service, name, version)
        except ClientError as error:
            await context.abort(_CODES[error.status], str(error))

    def _infer(
        self, request: pb.ModelInferRequest, request_id: str
    ) -> tuple[Batch, NDArray[Any], pb.ModelInferResponse]:
        check_model(self._service, request.model_name, request.model_version)
        service, signature = self._service, self._signature
        batch = v2.to_batch(_tensors(request), service.scores.layout, service.limits.rows)
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


def _tensors(request: pb.ModelInferRequest) -> list[v2.Tensor]:
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidInput(
            f"Field 'raw_input_contents': expected {len(request.inputs)} tensors as in 'inputs', got {len(raw)}."
        )
    if raw and (doubled := next((tensor for tensor in request.inputs if tensor.contents.ListFields()), None)):
        raise InvalidInput(
            f"Tensor {doubled.name!r}: expected no 'contents' beside 'raw_input_contents', got values in both."
        )
    contents = raw or [_contents(tensor) for tensor in request.inputs]
    return [
        v2.Tensor(tensor.name, tensor.datatype, list(tensor.shape), data)
        for tensor, data in zip(request.inputs, contents, strict=True)
    ]


def _contents(tensor: pb.ModelInferRequest.InferInputTensor) -> list[Any]:
    if tensor.datatype == "FP16":
        raise InvalidInput(f"Tensor {tensor.name!r}: expected FP16 in 'raw_input_contents', got it in 'contents'.")
    values = list(getattr(tensor.contents, _CONTENTS[tensor.datatype])) if tensor.datatype in _CONTENTS else []
    if tensor.datatype != "BYTES":
        return values
    try:
        return [value.decode("utf-8") for value in values]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"Tensor {tensor.name!r}: expected UTF-8, got {error.reason}.") from error
