"""`python -m benchmarks.figures`: put the tables of `benchmarks/results` into the README."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.common import RESULTS, shown

README: Final = Path(__file__).parents[1] / "README.md"
BENCHMARKS: Final = ("pipeline", "rollout", "judge", "predictor", "controller")
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


def with_figures(readme: str) -> str:
    return _SECTION.sub(lambda found: f"{found[1]}{tables(results())}{found[2]}", readme)


if __name__ == "__main__":
    README.write_text(with_figures(README.read_text(encoding="utf-8")), encoding="utf-8")
