"""HTTP to a server by its address: `http://HOST:PORT`, or `unix:PATH` where it listens on a Unix socket."""

from typing import Final

import aiohttp

UNIX: Final = "unix:"


def session(address: str, *, timeout_s: float) -> aiohttp.ClientSession:
    """Its requests name paths alone; `timeout_s` is the most that one may take."""
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    if address.startswith(UNIX):
        connector = aiohttp.UnixConnector(address.removeprefix(UNIX))
        return aiohttp.ClientSession("http://localhost", connector=connector, timeout=timeout)
    return aiohttp.ClientSession(address, timeout=timeout)
