"""Plain requests to the processes of an embedded platform, which listen on sockets in its home."""

import contextlib
import http.client
import os
import socket
from pathlib import Path


class OnSocket(http.client.HTTPConnection):
    """To the server on the socket `path` in `home`, however long the path of that is."""

    def __init__(self, home: Path, path: str) -> None:
        super().__init__("localhost", timeout=10)
        self._home, self._path = home, path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        folder = os.open(self._home, os.O_PATH)
        try:
            self.sock.connect(f"/proc/self/fd/{folder}/{self._path}")
        finally:
            os.close(folder)


def ask(server: http.client.HTTPConnection, path: str, body: bytes | None = None) -> bytes:
    """The answer to one request, on a connection of its own."""
    with contextlib.closing(server):
        headers = {"Content-Type": "application/json"} if body is not None else {}
        server.request("GET" if body is None else "POST", path, body, headers)
        return server.getresponse().read()
