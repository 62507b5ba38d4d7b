"""The drill whose effect is too slow to wait for."""

from argparse import Namespace

import pytest

from predictor import drill


def test_a_slow_start_comes_before_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr("time.sleep", calls.append)
    monkeypatch.setattr("predictor.server.serve", lambda arguments, **_: calls.append("serve"))
    drill.serve(Namespace(fault="slowstart", rate=1.0))
    assert calls == [600.0, "serve"]
