"""The rollout benchmark counts what it says it counts, once, small."""

import pytest
from embedded import write_model

from benchmarks import kills, platform, rollout
from serin.rollout.document import Phase

pytestmark = pytest.mark.xdist_group("embedded")


def test_lost_requests_are_all_but_the_good_answers():
    tally = platform.Tally(sent=100, answers={("a", 200): 80, ("a", 503): 2, ("b", 500): 5, ("", 0): 3})
    assert tally.lost() == 20
    assert tally.lost(besides="b") == 15
    assert tally.of("a") == 82 and tally.of(None) == 0


def test_exposure_kills_and_the_gateway_s_cost_are_measured(tmp_path, monkeypatch):
    def models(self: platform.Bench):
        write_model(self.folder / "old")
        write_model(self.folder / "new", intercept=2.001)
        return self.folder / "old", self.folder / "new"

    monkeypatch.setattr(platform.Bench, "_models", models)
    monkeypatch.setenv("SERIN_PORT", "0")
    bench = platform.Bench(tmp_path)
    try:
        assert bench.follow(bench.release(bench.old, platform.QUICK)).status.phase is Phase.PROMOTED
        rows = {row.what: row for row in rollout.exposure(bench, 1)}
        assert rows["failing candidate: rolled back"].value == 1
        assert rows["failing candidate: maximum exposure"].value > 0
        assert rows["failing candidate: unanswered requests"].ok
        assert rows["from the decision to the split in force, worst"].value > 0
        assert {row.unit for row in rollout.gateway_cost(bench, 3)} == {"ms", "×"}
        killed = {row.what: row for row in kills.kills(bench, 1)}
        assert killed["1 kills of the model server of stable at 200/s: requests lost"].ok
        assert killed["1 kills of the gateway at 200/s: longest without an answer"].value > 0
    finally:
        bench.close()
