"""When model servers are started and started again, and how many."""

import os

from serin.platforms.embedded import processes
from serin.platforms.embedded.servers import SPARE_BYTES, delay_s, room_for_another


def test_what_dies_at_once_comes_back_ever_more_slowly_but_always():
    delays = [delay_s(restarts) for restarts in range(2000)]
    assert delays[:5] == [0, 1, 2, 4, 8] and delays == sorted(delays) and delays[-1] == 10


def test_a_second_server_is_started_where_memory_allows_it():
    assert room_for_another(100, 201 + SPARE_BYTES)
    assert not room_for_another(100, 200 + SPARE_BYTES)


def test_memory_is_what_machine_and_container_leave(tmp_path):
    def container(limit: str) -> int:
        (tmp_path / "memory.max").write_text(limit)
        (tmp_path / "memory.current").write_text("3000\n")
        (tmp_path / "memory.stat").write_text("anon 1000\ninactive_file 500\nactive_file 7\n")
        return processes.available_bytes(tmp_path)

    machine = processes.available_bytes(tmp_path / "no container")
    assert machine > 2**20
    assert container("4000\n") == 1500
    assert container("max\n") > 2**20
    assert processes.memory_bytes(2**22 + 1) == 0 < processes.memory_bytes(os.getpid())
