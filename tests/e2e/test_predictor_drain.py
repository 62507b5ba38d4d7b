"""A model server that is told to end while the gateway still sends it requests."""

import os
import signal
from pathlib import Path

import pytest
from embedded import QUICK, home, shown, traffic, write_model

from serin.plan import Checks, Stage
from serin.rollout.document import Phase

pytestmark = pytest.mark.xdist_group("embedded")


def test_no_request_is_lost_behind_envoy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers until the gateway sends its requests to the other server, then ends."""
    monkeypatch.setenv("SERIN_PORT", "0")
    first, second = tmp_path / "1", tmp_path / "2"
    write_model(first)
    write_model(second, intercept=2.1)
    half = QUICK.model_copy(update={"checks": Checks.NONE, "stages": (Stage(traffic=50, min_seconds=30, margin=3),)})
    with home(tmp_path / "home") as here:
        here.ended(here.request(first))
        with traffic(here, first, rate=300) as tally:
            rollout = here.request(second, plan=half)
            here.reached(rollout, Phase.PROGRESSING)
            candidate = here.find(rollout).status.candidate_revision
            here.wait(lambda: tally.answers[candidate, 200] > 50, "traffic to the candidate")
            here.wait(lambda: here.healthy(candidate) == 2, "both its servers")
            os.kill(here.servers(candidate)[0], signal.SIGTERM)
            log = here.path / "logs" / "supervisor.log"
            here.wait(lambda: f"{candidate} died (exit code 0)" in log.read_text(encoding="utf-8"), "its end")
        assert (tally.failed, sum(tally.answers.values())) == (0, tally.sent), shown(tally)
