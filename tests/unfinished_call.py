"""A gRPC call whose message lacks its last byte, in frames of HTTP/2: no client library lets one do that."""

import contextlib
import socket
import struct
import time
from collections.abc import Iterator

WINDOW = 65_535
FRAME = 16_384
DATA, HEADERS, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 4, 6, 8
ACK, END_HEADERS = 1, 4
CALL = {
    b":method": b"POST",
    b":scheme": b"http",
    b":path": b"/inference.GRPCInferenceService/ModelInfer",
    b":authority": b"x",
    b"te": b"trailers",
    b"content-type": b"application/grpc",
}


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + payload


class UnfinishedCall:
    def __init__(self, port: int, size_bytes: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._windows = [WINDOW, WINDOW]  # the connection's, the stream's
        self._initial = WINDOW
        self._received = b""
        self.missing_bytes = size_bytes - 1
        named = b"".join(bytes([0, len(name)]) + name + bytes([len(value)]) + value for name, value in CALL.items())
        self._socket.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0) + frame(HEADERS, END_HEADERS, 1, named)
        )
        self._data(b"\0" + size_bytes.to_bytes(4, "big"))

    def close(self) -> None:
        self._socket.close()

    def send(self, seconds: float) -> None:
        """As much of the message as the server takes meanwhile."""
        end_s = time.monotonic() + seconds
        with contextlib.suppress(ConnectionError):
            while self.missing_bytes and time.monotonic() < end_s:
                while (size := min(self.missing_bytes, FRAME, *self._windows)) > 0:
                    self._data(b"\0" * size)
                    self.missing_bytes -= size
                for kind, flags, stream, payload in self._frames():
                    self._obey(kind, flags, stream, payload)

    def _data(self, payload: bytes) -> None:
        self._socket.sendall(frame(DATA, 0, 1, payload))
        self._windows = [window - len(payload) for window in self._windows]

    def _frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        self._socket.settimeout(0.02)
        try:
            self._received += (data := self._socket.recv(65_536))
            if not data:
                raise ConnectionError
        except TimeoutError:
            return
        finally:
            self._socket.settimeout(10)
        while len(self._received) >= (end := 9 + int.from_bytes(self._received[:3], "big")):
            kind, flags = self._received[3:5]
            yield kind, flags, int.from_bytes(self._received[5:9], "big"), self._received[9:end]
            self._received = self._received[end:]
            if len(self._received) < 9:
                return

    def _obey(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE and stream in (0, 1):
            self._windows[stream] += int.from_bytes(payload, "big")
        elif kind == SETTINGS and not flags & ACK:
            for name, value in struct.iter_unpack(">HI", payload):
                if name == 4:  # the initial window of streams
                    self._windows[1] += value - self._initial
                    self._initial = value
            self._socket.sendall(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self._socket.sendall(frame(PING, ACK, 0, payload))
