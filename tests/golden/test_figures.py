"""The README's figures are those of the benchmarks' last run."""

from benchmarks.figures import README, tables, with_figures


def test_the_readme_shows_the_results_that_are_kept() -> None:
    readme = README.read_text(encoding="utf-8")
    assert with_figures(readme) == readme, "run `python -m benchmarks.figures`"


def test_a_missed_bound_is_shown() -> None:
    row = {"what": "latency", "value": 12.5, "unit": "ms", "bound": "<= 10", "ok": False}
    assert "| latency | 12.5 ms | ≤ 10 **missed** |" in tables({"x": {"machine": "m", "rows": [row]}})
