"""`python -m benchmarks.figures`: headlines of `benchmarks/results` in the README, all tables in the docs."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.common import RESULTS, shown

README: Final = Path(__file__).parents[1] / "README.md"
PAGE: Final = README.parent / "docs" / "figures.md"
BENCHMARKS: Final = ("pipeline", "rollout", "judge", "predictor", "controller")
HEADLINES: Final = (
    ("pipeline", "make run, fresh clone: install, first release, pipeline, canary"),
    ("rollout", "promoted rollout: failed or unanswered"),
    ("rollout", "20 kills of the model server of stable at 200/s: requests lost"),
    ("rollout", "failing candidate at 5 % of 100/s, checks off: median exposure"),
    ("judge", "healthy candidates rolled back, of 10,040"),
    ("judge", "errors 1 → 5 % at 100 rps: fewer exposed than Kayenta's"),
    ("judge", "healthy to 100 %, fast at 100 rps"),
    ("predictor", "throughput vs the best stock peer"),
    ("controller", "1,000 in flight: peak resident memory"),
)
"""What the README shows: benchmark and row."""
_SECTION: Final = re.compile(r"(<!-- figures -->\n).*(<!-- /figures -->)", re.DOTALL)


def tables(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, one table per benchmark that has been run: the figures with a bound; what missed it says so."""
    parts = []
    for name, document in results.items():
        rows = "\n".join(
            f"| {row['what']} | {shown(row['value'])} {row['unit']} | {_bound(row)} |".replace("  ", " ")
            for row in document["rows"]
            if row["bound"]
        )
        parts.append(
            f"`make bench-{name}`, on {document['machine']}:\n\n| what | measured | bound |\n|---|---|---|\n{rows}\n"
        )
    return "\n".join(parts)


def _bound(row: Mapping[str, Any]) -> str:
    bound = str(row["bound"]).replace("<=", "≤").replace(">=", "≥").replace("==", "=")
    return bound if row["ok"] else f"{bound} **missed**"


def results() -> dict[str, dict[str, Any]]:
    files = {name: RESULTS / f"{name}.json" for name in BENCHMARKS}
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.exists()}


def headlines(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, one table: the rows named in `HEADLINES`. Raises `KeyError` for one that no benchmark has."""
    lines = ["| what | measured | command |", "|---|---|---|"]
    for name, what in HEADLINES:
        rows = {row["what"]: row for row in results[name]["rows"]}
        row = rows[what]
        lines.append(f"| {what} | {shown(row['value'])} {row['unit']} | `make bench-{name}` |")
    return "\n".join(lines) + "\n"


def with_figures(page: str, figures: str) -> str:
    """`page` with `figures` between its two marks."""
    return _SECTION.sub(lambda found: f"{found[1]}{figures}{found[2]}", page)


if __name__ == "__main__":
    measured = results()
    for file, figures in ((README, headlines(measured)), (PAGE, tables(measured))):
        file.write_text(with_figures(file.read_text(encoding="utf-8"), figures), encoding="utf-8")
