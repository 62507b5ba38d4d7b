"""Requests that are almost right: valid ones, broken in their values, structure, bytes, encoding or headers.

Seeded: the same seed gives the same requests. Every request is whole as HTTP framing goes (or visibly broken), so
that a server has no reason to wait for more.
"""

import asyncio
import itertools
import random
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import orjson

ANSWER_S: Final = 20.0
CONNECTIONS: Final = 8

_SCALARS: Final[Sequence[Any]] = (
    None, True, False, 0, -1, 1, 2**31, 2**63 - 1, -(2**63), 2**64 - 1, 0.5, -0.0, 1e-320, 3.5e38, 1.7e308, "", " ",
    "\0", "NaN", "null", "5", "Größe", "\u202e", "😀", "a" * 5000, [], {}, [[]], [None], {"": None},
)  # fmt: skip
_WORDS: Final = (
    "instances", "inputs", "outputs", "parameters", "name", "shape", "datatype", "data", "id", "binary_data",
    "binary_data_size", "binary_data_output", "probability", "decision", "BYTES", "FP16", "FP32", "FP64", "INT64",
    "BOOL", "UINT8", "__proto__", "constructor",
)  # fmt: skip
_SIZES: Final = (
    ("BOOL", 1), ("INT8", 1), ("UINT8", 1), ("INT16", 2), ("UINT16", 2), ("FP16", 2), ("INT32", 4), ("UINT32", 4),
    ("FP32", 4), ("INT64", 8), ("UINT64", 8), ("FP64", 8),
)  # fmt: skip
"""Bytes of a number in each datatype."""
_HEADERS: Final[Sequence[tuple[str, Sequence[str]]]] = (
    ("Content-Type", ("application/json", "text/plain", "", "application/json; charset=utf-16", "\xff", "a/b;" * 99)),
    ("Content-Encoding", ("gzip", "identity", "br, gzip", "")),
    ("Inference-Header-Content-Length", ("0", "1", "50", "-1", "1e3", "0x10", "9" * 30, "", " 5 ", "٣")),
    ("X-Request-Id", ("abc", "", "a b", "\xe9", "x" * 3000, "{}")),
    ("Accept", ("application/xml", "*/*", "")),
    ("Accept-Encoding", ("gzip", "br;q=2")),
    ("Expect", ("100-continue", "nothing")),
    ("Upgrade", ("h2c", "websocket")),
    ("ce-specversion", ("1.0", "7")),
    ("ce-type", ("org.kubeflow.serving.inference.request",)),
    ("X-Forwarded-For", ("::1", "1.2.3.4, unknown")),
    ("Host", ("", "a" * 300, "[::1")),
)


class Fuzzer:
    def __init__(self, seed: int, model: str, records: Sequence[dict[str, Any]]) -> None:
        self._random = random.Random(seed)
        self._model, self._records = model, records
        self._told = [record for record in records if set(record.values()) != {None}]

    def valid(self) -> bytes:
        """A request that the server answers with 200."""
        path, document, _ = self._random.choice((self._v1, self._v2))()
        body = orjson.dumps(document)
        return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    def mutated(self, request: bytes) -> bytes:
        """`request` with one node of its JSON changed, else with some of its bytes."""
        head, _, body = request.partition(b"\r\n\r\n")
        try:
            body = orjson.dumps(self._mutated(orjson.loads(body)), option=orjson.OPT_NON_STR_KEYS)
        except orjson.JSONDecodeError:
            body = self._bytes(body)
        return head + b"\r\n\r\n" + body

    def request(self, protocol: str | None = None) -> bytes:
        """One HTTP/1.1 request, asking for the connection to be closed; of "v1", "v2" or either."""
        made = {"v1": (self._v1,), "v2": (self._v2, self._v2_binary), None: (self._v1, self._v2, self._v2_binary)}
        path, document, binary = self._random.choice(made[protocol])()
        for _ in range(self._random.choice((0, 1, 1, 2, 5))):
            document = self._mutated(document)
        head = orjson.dumps(document, option=orjson.OPT_NON_STR_KEYS)
        headers = {"Inference-Header-Content-Length": str(len(head))} if binary else {}
        return self._http(path, self._bytes(head + binary), headers)

    def _v1(self) -> tuple[str, Any, bytes]:
        records = [dict(self._random.choice(self._records)) for _ in range(self._random.choice((1, 1, 2, 40)))]
        verb = self._random.choice(("predict", "predict", "explain"))
        return f"/v1/models/{self._model}:{verb}", {"instances": records}, b""

    def _v2(self) -> tuple[str, Any, bytes]:
        record = self._random.choice(self._told)
        rows = self._random.choice((1, 3))
        inputs = [
            {"name": name, "shape": [rows, 1], "datatype": "BYTES" if isinstance(value, str) else "FP64",
             "data": [value] * rows}
            for name, value in record.items()
            if value is not None
        ]  # fmt: skip
        return (
            f"/v2/models/{self._model}/infer",
            {"id": "1", "inputs": inputs, "outputs": [{"name": "decision"}]},
            b"",
        )

    def _v2_binary(self) -> tuple[str, Any, bytes]:
        path, document, _ = self._v2()
        binary = b""
        for tensor in document["inputs"]:
            if self._random.random() < 0.5:
                continue
            values = tensor.pop("data")
            if tensor["datatype"] == "BYTES":
                texts = [value.encode() for value in values]
                data = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
            else:
                tensor["datatype"], size = self._random.choice(_SIZES)
                data = self._random.randbytes(size * len(values))
            if self._random.random() < 0.05:
                data = data[: self._random.randrange(len(data))]
            tensor["parameters"] = {"binary_data_size": len(data)}
            binary += data
        return path, document, binary

    def _mutated(self, node: object) -> object:
        """The document with one node of it changed, dropped, doubled or swapped for something else."""
        if self._random.random() < 0.15 or not isinstance(node, list | dict) or not node:
            return self._random.choice((*_SCALARS, *_WORDS, "".join(self._random.choices(string.printable, k=9))))
        if isinstance(node, list):
            i = self._random.randrange(len(node))
            changed = list(node)
            match self._random.randrange(5):
                case 0:
                    del changed[i]
                case 1:
                    changed.insert(i, changed[i])
                case _:
                    changed[i] = self._mutated(changed[i])
            return changed
        key = self._random.choice(list(node))
        changed = dict(node)
        match self._random.randrange(6):
            case 0:
                del changed[key]
            case 1:
                changed[self._random.choice(_WORDS)] = changed.pop(key)
            case 2:
                changed[self._random.choice(_WORDS)] = self._random.choice(_SCALARS)
            case _:
                changed[key] = self._mutated(changed[key])
        return changed

    def _bytes(self, body: bytes) -> bytes:
        roll = self._random.random()
        if roll < 0.7 or not body:
            return body
        i = self._random.randrange(len(body))
        if roll < 0.75:
            return body[:i]
        if roll < 0.80:
            return body[:i] + self._random.randbytes(self._random.randrange(1, 9)) + body[i:]
        if roll < 0.85:
            return body[:i] + bytes([body[i] ^ (1 << self._random.randrange(8))]) + body[i + 1 :]
        if roll < 0.88:
            return body.decode("utf-8", "replace").encode(self._random.choice(("utf-16", "utf-8-sig", "utf-32")))
        if roll < 0.91:
            return b"[" * self._random.choice((10, 1500)) + body
        if roll < 0.94:
            return body.replace(b"null", self._random.choice((b"NaN", b"Infinity", b"1e999", b"-", b"\\ud800")))
        return self._random.randbytes(self._random.randrange(200))

    def _http(self, path: str, body: bytes, headers: dict[str, str]) -> bytes:
        rng = self._random
        headers = headers | {name: rng.choice(values) for name, values in _HEADERS if rng.random() < 0.06}
        method = "POST" if rng.random() < 0.97 else rng.choice(("GET", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"))
        if rng.random() < 0.03:
            path = rng.choice(
                (path + "/", path.upper(), "//" + path, path + "?a=%00", "/%2e%2e/metrics", path + "%ff")
            )
        if rng.random() < 0.05:
            whole = chunked(body[:4000], self._random.choice((1, 7, 1000)))
            framing, body = "Transfer-Encoding: chunked", whole if self._random.random() < 0.8 else b"zz\r\n" + whole
        else:
            framing = f"Content-Length: {len(body)}"
        lines = [
            f"{method} {path} HTTP/1.1",
            f"Host: {headers.pop('Host', 'localhost')}",
            "Connection: close",
            framing,
        ]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join(lines).encode("utf-8" if rng.random() < 0.5 else "latin-1", "replace") + b"\r\n\r\n" + body


def chunked(body: bytes, size: int) -> bytes:
    """In chunks of `size` bytes."""
    chunks = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


def with_length(request: bytes) -> bytes:
    """The same with a Content-Length that is true."""
    head, separator, body = request.partition(b"\r\n\r\n")
    head = re.sub(rb"(?i)content-length: *[0-9]*", b"Content-Length: %d" % len(body), head, count=1)
    return head + separator + body


async def _send(
    port: int, requests: Iterator[bytes], outcomes: Counter[str], failed: Callable[[bytes, bytes], None]
) -> None:
    async def sender() -> None:
        for request in requests:
            head = await answer(port, request)
            outcome = head[9:12].decode("latin-1") if head.startswith(b"HTTP/1.1 ") else "none"
            outcomes[outcome] += 1
            if outcome.startswith("5") or outcome == "none":
                failed(request, head)

    await asyncio.gather(*(sender() for _ in range(CONNECTIONS)))


async def answer(port: int, request: bytes) -> bytes:
    """Its head; nothing if none came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), ANSWER_S)
        if head != b"HTTP/1.1 100 Continue\r\n\r\n":
            return head
        return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), ANSWER_S)
    except (ConnectionError, TimeoutError, asyncio.IncompleteReadError):
        return b""
    finally:
        writer.close()


def fuzz(
    port: int,
    *,
    count: int,
    seed: int,
    model: str,
    records: Sequence[dict[str, Any]],
    failed: Callable[[bytes, bytes], None],
    kept: Sequence[bytes] = (),
) -> Counter[str]:
    """Send `count` requests and those that another fuzzer `kept`; how many ended in which status, or "none" where no
    answer came. `failed` gets each request, and the answer's head, with a 5xx or without an answer."""
    outcomes: Counter[str] = Counter()
    fuzzer = Fuzzer(seed, model, records)
    requests = itertools.chain(kept, (fuzzer.request() for _ in range(count)))
    asyncio.run(_send(port, requests, outcomes, failed))
    return outcomes
