"""HTTP to a server by its address: `http://HOST:PORT`, or `unix:PATH` where it listens on a Unix socket.

Who answers is not trusted: answers are read up to a size and never unpacked.
"""

import json
from typing import Final

import aiohttp

UNIX: Final = "unix:"
_PLAIN: Final = {"Accept-Encoding": "identity"}


def session(address: str, *, timeout_s: float) -> aiohttp.ClientSession:
    """Its requests name paths alone; `timeout_s` is the most that one may take."""
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    connector, base = None, address
    if address.startswith(UNIX):
        connector, base = aiohttp.UnixConnector(address.removeprefix(UNIX)), "http://localhost"
    return aiohttp.ClientSession(base, connector=connector, timeout=timeout, headers=_PLAIN, auto_decompress=False)


async def read(response: aiohttp.ClientResponse, most_bytes: int) -> bytes:
    """The answer's body. Raises `ValueError` when it is longer."""
    body = bytearray()
    async for block in response.content.iter_any():
        body += block
        if len(body) > most_bytes:
            raise ValueError(f"more than {most_bytes} bytes")
    return bytes(body)


async def read_json(response: aiohttp.ClientResponse, most_bytes: int) -> object:
    """The answer's body. Raises `ValueError` when it is longer, or not JSON."""
    body = await read(response, most_bytes)
    try:
        found: object = json.loads(body)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return found
