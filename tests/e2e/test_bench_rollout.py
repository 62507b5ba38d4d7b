"""The rollout benchmark counts what it says it counts, once, small."""

import pytest
from embedded import write_model

from benchmarks import rollout
from serin.rollout.document import Phase

pytestmark = pytest.mark.xdist_group("embedded")


def test_lost_requests_are_all_but_the_good_answers():
    tally = rollout.Tally(sent=100, answers={("a", 200): 80, ("a", 503): 2, ("b", 500): 5, ("", 0): 3})
    assert tally.lost() == 20
    assert tally.lost(besides="b") == 15
    assert tally.of("a") == 82 and tally.of(None) == 0


def test_exposure_and_the_gateway_s_cost_are_measured(tmp_path, monkeypatch):
    def models(self: rollout.Bench):
        write_model(self.folder / "old")
        return self.folder / "old", self.folder / "old"

    monkeypatch.setattr(rollout.Bench, "_models", models)
    monkeypatch.setenv("SERIN_PORT", "0")
    bench = rollout.Bench(tmp_path)
    try:
        assert bench.follow(bench.release(bench.old, rollout.QUICK)).status.phase is Phase.PROMOTED
        rows = {row.what: row for row in rollout.exposure(bench, 1)}
        assert rows["failing candidate: rolled back"].value == 1
        assert rows["failing candidate: most seen"].value > 0
        assert rows["failing candidate: requests without any answer"].ok
        assert rows["from the decision to the split in force, worst"].value > 0
        assert {row.unit for row in rollout.gateway_cost(bench, 3)} == {"ms", "×"}
    finally:
        bench.close()
