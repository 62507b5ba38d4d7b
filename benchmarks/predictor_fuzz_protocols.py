"""V1, V2 and gRPC over sockets: of each as many requests as asked for, two fifths of them valid, the others almost.

Seeded: the same seed gives the same requests. A valid one has to be answered with 200 (OK), any other one with
anything that does not put the blame on the server.
"""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import numpy as np
import orjson

from benchmarks.predictor_fuzz import ANSWER_S, CONNECTIONS, Fuzzer, answer, chunked, with_length
from predictor import inference_pb2 as pb

Records = Sequence[dict[str, Any]]

VALID: Final = 0.4
BLAME: Final = ("none", "UNKNOWN", "INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "DATA_LOSS")
"""Outcomes that say it was the server, with every 5xx. CANCELLED and DEADLINE_EXCEEDED: nobody asked for them."""
SERVICE: Final = "/inference.GRPCInferenceService"
_CALLS: Final = ("ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelInfer", "No", "")
_TYPED: Final = {
    "FP32": "fp32_contents", "FP64": "fp64_contents", "INT64": "int64_contents", "INT32": "int_contents",
    "UINT8": "uint_contents", "BOOL": "bool_contents", "BYTES": "bytes_contents",
}  # fmt: skip
_DTYPES: Final = {
    "FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "INT64": "<i8", "INT32": "<i4", "UINT8": "<u1", "BOOL": "?",
}  # fmt: skip


@dataclass
class Outcome:
    """How many requests were `sent`, how many of them `valid`, and how they ended; `refused`: valid ones without a
    200 (OK); `blamed`: those answered as if the server were at fault, or not at all. `failures`: some of both."""

    valid: int = 0
    refused: int = 0
    endings: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    @property
    def sent(self) -> int:
        return self.endings.total()

    @property
    def blamed(self) -> int:
        return sum(count for ending, count in self.endings.items() if ending in BLAME or ending.startswith("5"))

    def add(self, request: bytes, ending: str, *, valid: bool) -> None:
        self.endings[ending] += 1
        self.valid += valid
        refused = valid and ending not in ("200", "OK")
        self.refused += refused
        if (refused or ending in BLAME or ending.startswith("5")) and len(self.failures) < 5:
            self.failures.append(f"{'valid' if valid else 'malformed'}: {request[:1500]!r} -> {ending}")


class Maker:
    """`v1`, `v2` and `rpc` give a request and whether it is valid."""

    def __init__(self, seed: int, model: str, revision: str, records: Records) -> None:
        self._random = random.Random(seed)
        self._fuzzer = Fuzzer(seed, model, records)
        self._model, self._revision, self._records = model, revision, records
        self._texts = {name for record in records for name, value in record.items() if isinstance(value, str)}

    def v1(self) -> tuple[bytes, bool]:
        return self._http(self._v1(), "v1")

    def v2(self) -> tuple[bytes, bool]:
        return self._http(self._v2(), "v2")

    def rpc(self) -> tuple[tuple[str, bytes], bool]:
        """The call's name and its message."""
        message = self._message()
        if self._random.random() < VALID:
            return ("ModelInfer", message.SerializeToString()), True
        call = self._random.choice(_CALLS) if self._random.random() < 0.1 else "ModelInfer"
        return (call, self._broken(message)), False

    def _http(self, valid: bytes, protocol: str) -> tuple[bytes, bool]:
        roll = self._random.random()
        if roll < VALID:
            return self._framed(valid), True
        if roll < VALID + (1 - VALID) / 2:
            return with_length(self._fuzzer.mutated(valid)), False
        return self._fuzzer.request(protocol), False

    def _framed(self, request: bytes) -> bytes:
        """The same in another framing that is right, too."""
        head, _, body = request.partition(b"\r\n\r\n")
        match self._random.randrange(6):
            case 0:
                head = head.replace(b"HTTP/1.1", b"HTTP/1.0")
            case 1:
                head = head.replace(b"Content-Length: %d" % len(body), b"Transfer-Encoding: chunked")
                body = chunked(body, self._random.choice((1, 7, 1000)))
            case 2:
                head += b"\r\nX-Request-Id: a-1\r\nContent-Type: application/json; charset=utf-8\r\nAccept: */*"
            case 3:
                head += b"\r\nConnection: close\r\nExpect: 100-continue"
            case _:
                pass
        return head + b"\r\n\r\n" + body

    def _post(self, path: str, body: bytes, json_length: int | None = None) -> bytes:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
        if json_length is not None:
            head += f"\r\nInference-Header-Content-Length: {json_length}"
        return head.encode() + b"\r\n\r\n" + body

    def _rows(self) -> list[dict[str, Any]]:
        """Records, of which each leaves out the same fields."""
        rows = [self._random.choice(self._records) for _ in range(self._random.choice((1, 1, 1, 2, 5, 40)))]
        names = [name for name in self._records[0] if self._random.random() < 0.9] or list(self._records[0])[:1]
        return [{name: row.get(name) for name in names} for row in rows]

    def _v1(self) -> bytes:
        rows = self._rows()
        instances: Any = rows
        if self._random.random() < 0.2:
            instances = [{name: [row[name] for row in rows] for name in rows[0]}]
        verb = self._random.choice(("predict", "predict", "predict", "explain"))
        return self._post(f"/v1/models/{self._model}:{verb}", orjson.dumps({"instances": instances}))

    def _v2(self) -> bytes:
        rows, binary = self._rows(), self._random.random() < 0.4
        inputs, data = [], b""
        for name in rows[0]:
            datatype, values = self._column(name, [row[name] for row in rows])
            tensor = {"name": name, "datatype": datatype, "shape": self._shape(len(values))}
            if binary and self._random.random() < 0.7:
                encoded = raw(datatype, values)
                tensor["parameters"] = {"binary_data_size": len(encoded)}
                data += encoded
            else:
                tensor["data"] = values
            inputs.append(tensor)
        document: dict[str, Any] = {"inputs": inputs}
        if self._random.random() < 0.3:
            document["id"] = "42"
        if self._random.random() < 0.3:
            document["outputs"] = [{"name": self._random.choice(("decision", "probability")),
                                    "parameters": {"binary_data": self._random.random() < 0.5}}]  # fmt: skip
        head = orjson.dumps(document)
        version = self._random.choice(("", "", f"/versions/{self._revision}"))
        path = f"/v2/models/{self._model}{version}/infer"
        return self._post(path, head + data, len(head) if data or self._random.random() < 0.2 else None)

    def _shape(self, rows: int) -> list[int]:
        return self._random.choice(([rows], [rows, 1]))

    def _column(self, name: str, values: list[Any], *, null: bool = True) -> tuple[str, list[Any]]:
        """A datatype that holds them, and the values; those of numbers without `null` have NaN for it."""
        if name in self._texts:
            return "BYTES", values if null else [value or "" for value in values]
        numbers = [value for value in values if value is not None]
        datatypes = ["FP64", "FP32"]
        if all(value == int(value) for value in numbers) and (null or len(numbers) == len(values)):
            datatypes += ["INT64"]
            datatypes += ["INT32"] * all(abs(value) < 2**31 for value in numbers)
            datatypes += ["UINT8"] * all(0 <= value < 256 for value in numbers)
            datatypes += ["BOOL"] * all(value in (0, 1) for value in numbers)
        datatype = self._random.choice(datatypes)
        if not null and datatype.startswith("FP"):
            return datatype, [float("nan") if value is None else float(value) for value in values]
        if datatype.startswith("FP"):
            return datatype, values
        return datatype, [None if value is None else int(value) for value in values]

    def _message(self) -> pb.ModelInferRequest:
        rows, as_raw = self._rows(), self._random.random() < 0.4
        request = pb.ModelInferRequest(model_name=self._model, id=self._random.choice(("", "42")))
        request.model_version = self._random.choice(("", "", self._revision))
        for name in rows[0]:
            values = [row[name] for row in rows]
            if all(value is None for value in values):
                continue
            datatype, values = self._column(name, values, null=False)
            tensor = request.inputs.add(name=name, datatype=datatype, shape=self._shape(len(values)))
            if as_raw:
                request.raw_input_contents.append(raw(datatype, values))
            else:
                fitted = [value.encode() for value in values] if datatype == "BYTES" else values
                getattr(tensor.contents, _TYPED[datatype]).extend(fitted)
        if not request.inputs:
            return self._message()
        if self._random.random() < 0.3:
            request.outputs.add(name=self._random.choice(("decision", "probability")))
        return request

    def _broken(self, request: pb.ModelInferRequest) -> bytes:
        rng = self._random
        for _ in range(rng.choice((0, 1, 1, 2, 4))):
            self._break(request)
        data = request.SerializeToString()
        i = rng.randrange(len(data))
        match rng.randrange(8):
            case 0:
                return data[:i] + bytes([data[i] ^ (1 << rng.randrange(8))]) + data[i + 1 :]
            case 1:
                return data[:i]
            case 2:
                return data[:i] + rng.randbytes(rng.randrange(1, 9)) + data[i:]
            case 3:
                return rng.randbytes(rng.randrange(200)) if rng.random() < 0.3 else data + data
            case _:
                return data

    def _break(self, request: pb.ModelInferRequest) -> None:
        rng = self._random
        tensor = rng.choice(request.inputs) if request.inputs else request.inputs.add(name="x")
        contents = rng.choice(list(_TYPED.values()))
        match rng.randrange(10):
            case 0:
                request.model_name = rng.choice(("", "other", "\0", "a" * 5000))
            case 1:
                request.model_version = rng.choice(("1", "\n", "a" * 5000))
            case 2:
                tensor.name = rng.choice(("", "x", "\u202e", self._random.choice(list(self._records[0]))))
            case 3:
                tensor.datatype = rng.choice((*_DTYPES, "BYTES", "FP8", ""))
            case 4:
                tensor.ClearField("shape")
                tensor.shape.extend(rng.choice(([], [0], [-1], [2**63 - 1], [1, 1, 1], [3])))
            case 5:
                values = [b"\xff", b""] if contents == "bytes_contents" else [0, 1, 1]
                getattr(tensor.contents, contents).extend(values)
            case 6:
                number = rng.choice((float("inf"), -1e300, 3.5e38, float("nan")))
                tensor.contents.fp64_contents.append(number)
            case 7:
                request.raw_input_contents.append(rng.randbytes(rng.randrange(20)))
            case 8:
                request.outputs.add(name=rng.choice(("x", "", "decision", "probability")))
            case 9:
                request.inputs.remove(tensor)


def raw(datatype: str, values: Sequence[Any]) -> bytes:
    """As in the binary tensor extension; NaN and "" for missing values, 0 where a datatype has no such thing."""
    if datatype == "BYTES":
        encoded = [(value or "").encode() for value in values]
        return b"".join(len(value).to_bytes(4, "little") + value for value in encoded)
    missing = float("nan") if datatype.startswith("FP") else 0
    return np.array([missing if value is None else value for value in values], _DTYPES[datatype]).tobytes()


async def _spread(one: Callable[[Any, bool], Awaitable[None]], requests: Iterator[tuple[Any, bool]]) -> None:
    async def sender() -> None:
        for request, valid in requests:
            await one(request, valid)

    await asyncio.gather(*(sender() for _ in range(CONNECTIONS)))


def fuzz_http(port: int, make: Callable[[], tuple[bytes, bool]], count: int) -> Outcome:
    outcome = Outcome()

    async def one(request: bytes, valid: bool) -> None:
        head = await answer(port, request)
        outcome.add(request, head[9:12].decode("latin-1") if head.startswith(b"HTTP/1.1 ") else "none", valid=valid)

    asyncio.run(_spread(one, itertools.islice(iter(make, None), count)))
    return outcome


def fuzz_rpc(port: int, make: Callable[[], tuple[tuple[str, bytes], bool]], count: int) -> Outcome:
    outcome = Outcome()

    async def run() -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            calls = {name: channel.unary_unary(f"{SERVICE}/{name}") for name in _CALLS}

            async def one(request: tuple[str, bytes], valid: bool) -> None:
                name, message = request
                try:
                    await calls[name](message, timeout=ANSWER_S)
                    ending = "OK"
                except grpc.aio.AioRpcError as error:
                    ending = error.code().name
                outcome.add(message, ending, valid=valid)

            await _spread(one, itertools.islice(iter(make, None), count))

    asyncio.run(run())
    return outcome
