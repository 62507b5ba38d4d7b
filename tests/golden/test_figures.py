"""The figures shown are those of the benchmarks' last run, and each promise of the README names tests that exist."""

import ast
import re
from pathlib import Path

from benchmarks.figures import PAGE, README, headlines, results, tables, with_figures

ROOT = README.parent


def test_the_readme_shows_the_headlines_of_the_last_run() -> None:
    readme = README.read_text(encoding="utf-8")
    assert with_figures(readme, headlines(results())) == readme, "run `python -m benchmarks.figures`"


def test_the_docs_show_every_table_of_the_last_run() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_figures(page, tables(results())) == page, "run `python -m benchmarks.figures`"


def test_a_missed_bound_is_shown() -> None:
    row = {"what": "latency", "value": 12.5, "unit": "ms", "bound": "<= 10", "ok": False}
    assert "| latency | 12.5 ms | ≤ 10 **missed** |" in tables({"x": {"machine": "m", "rows": [row]}})


def _functions(file: Path) -> set[str]:
    return {node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_each_promise_names_tests_that_exist() -> None:
    section = README.read_text(encoding="utf-8").partition("## Promises")[2].partition("\n## ")[0]
    promises = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(promises) >= 10
    for promise in promises:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", promise)
        assert named, f"no test beside: {promise}"
        for file, test in named:
            assert test in _functions(ROOT / file), f"{file} has no {test}"
