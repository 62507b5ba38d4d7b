"""Where the gateway listens."""

import os
import socket

import pytest

from serin.platforms.embedded import processes
from serin.platforms.embedded.gateway_process import DEFAULT_PORT, port_to_take

ANY = 0


@pytest.mark.parametrize(
    ("wanted", "last", "told", "free", "port"),
    [
        (None, None, False, {DEFAULT_PORT}, DEFAULT_PORT),
        (None, None, False, set(), ANY),
        (None, 21000, False, {21000, DEFAULT_PORT}, DEFAULT_PORT),  # what it fell back to once is not what is wanted
        (None, 21000, False, {21000}, 21000),
        (None, 21000, True, {21000, DEFAULT_PORT}, 21000),  # clients know it under that address
        (ANY, 21000, False, {21000, DEFAULT_PORT}, 21000),
        (ANY, 21000, False, {DEFAULT_PORT}, ANY),
        (ANY, 21000, True, set(), 21000),
        (9000, 21000, False, {21000}, 9000),  # that one or none
        (9000, 21000, True, set(), 9000),
    ],
)
def test_the_port_is_the_users_choice_and_then_where_clients_expect_it(wanted, last, told, free, port):
    assert port_to_take(wanted, last, told=told, free=free.__contains__) == port


def test_whoever_listens_on_a_port_is_named():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert not processes.port_is_free(port)
        assert processes.holder(port).endswith(f"(process {os.getpid()})")
    assert processes.port_is_free(port)
    assert processes.holder(port) == "a program of another user"
