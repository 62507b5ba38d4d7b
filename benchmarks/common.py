"""What every benchmark hands in: a table for people and the same as JSON."""

import json
import operator
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

RESULTS: Final = Path(__file__).parent / "results"
_OPERATORS: Final[dict[str, Callable[[float, float], bool]]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
}


@dataclass(frozen=True, slots=True)
class Row:
    """`bound` is "<= 200", ">= 0.9", "== 0", or "" for a figure that is only told."""

    what: str
    value: float
    unit: str
    bound: str = ""

    @property
    def ok(self) -> bool:
        if not self.bound:
            return True
        sign, limit = self.bound.split()
        return _OPERATORS[sign](self.value, float(limit))


def shown(value: float) -> str:
    """Four digits that count, and no exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def machine() -> str:
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} × {_processor()}, {memory_gib:.0f} GiB, {platform.platform(terse=True)}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1] if found else platform.machine()


def versions(packages: Sequence[str]) -> dict[str, str]:
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}


def report(
    name: str,
    rows: Sequence[Row],
    *,
    packages: Sequence[str] = (),
    details: Mapping[str, object] | None = None,
    keep: bool = True,
) -> int:
    """Print the table, write `benchmarks/results/NAME.json`; return the exit status, 1 when a bound was missed.

    `details` is kept beside the rows, for those who want to know more; without `keep` nothing is written.
    """
    document = _document(f"make bench-{name}", rows, packages) | dict(details or {})
    if keep:
        _write(name, document)
    return _print(document)


def report_part(
    name: str, rows: Sequence[Row], prefixes: tuple[str, ...], *, command: str, packages: Sequence[str], keep: bool
) -> int:
    """As `report`, for the rows alone whose names begin with one of `prefixes`: they take the place of those in
    `benchmarks/results/NAME.json`, which says under "measured apart" on which machine and with which versions."""
    part = _document(command, rows, packages)
    if keep:
        document = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        others = [row for row in document["rows"] if not row["what"].startswith(prefixes)]
        apart = [other for other in document.get("measured apart", []) if other["command"] != command]
        about = {key: part[key] for key in ("command", "machine", "versions")}
        apart.append(about | {"rows": [row["what"] for row in part["rows"]]})
        _write(name, document | {"rows": [*others, *part["rows"]], "measured apart": apart})
    return _print(part)


def _document(command: str, rows: Sequence[Row], packages: Sequence[str]) -> dict[str, Any]:
    return {
        "machine": machine(),
        "versions": versions(packages),
        "command": command,
        "rows": [asdict(row) | {"ok": row.ok} for row in rows],
    }


def _write(name: str, document: Mapping[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")


def _print(document: Mapping[str, Any]) -> int:
    """Returns the exit status."""
    table = Table(title=f"{document['command']} on {document['machine']}", title_justify="left")
    for title in ("what", "measured", "unit", "bound", ""):
        table.add_column(title, justify="right" if title == "measured" else "left")
    for row in document["rows"]:
        mark = "" if not row["bound"] else "[green]ok[/]" if row["ok"] else "[red]MISSED[/]"
        table.add_row(row["what"], shown(row["value"]), row["unit"], row["bound"], mark)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    return 0 if all(row["ok"] for row in document["rows"]) else 1
