"""`make bench-data`: wide and long tables, against a plain DuckDB and XGBoost script doing the least that is needed.

CPU seconds, which a busy machine distorts less than the time on the wall; every measurement is a process of its own.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from benchmarks.common import Row, report

SEED: Final = 7
WIDE_ROWS: Final = 1079
WIDTHS: Final = (50, 200, 1000, 5000)
LONG_ROWS: Final = 1_000_000
BUDGET_S: Final = 10.0
PACKAGES: Final = ("duckdb", "pandas", "scikit-learn", "xgboost-cpu")

_END: Final = """
import json, resource
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"cpu_s": used.ru_utime + used.ru_stime, "mb": used.ru_maxrss / 1024}))
"""
PREPROCESS: Final = f"""
import sys
from pathlib import Path
from components.config import Config
from components.preprocess import core
from components.preprocess.sources import SourceKind
table, out = map(Path, sys.argv[1:])
config = Config.model_validate({{"service": "s", "data": {{"source": "x"}}, "target": "y", "positive": "1"}})
core.preprocess(config, table, source_kind=SourceKind.FILE, champion=None, train=out / "train", test=out / "test")
{_END}"""
TRAIN: Final = f"""
import sys
from pathlib import Path
from components.config import Config
from components.train import core
out = Path(sys.argv[2])
config = Config.model_validate({{"service": "s", "data": {{"source": "x"}}, "target": "y", "positive": "1",
                                "training": {{"budget_s": {BUDGET_S}}}}})
core.train(config, "xgboost", train=out / "train", test=out / "test", out=out / "model")
{_END}"""
PLAIN: Final = f"""
import sys, duckdb
from xgboost import XGBClassifier
rows = duckdb.read_csv(sys.argv[1]).df()
numbers = rows.select_dtypes("number").drop(columns="y")
learner = XGBClassifier(n_estimators=150, learning_rate=0.06, max_depth=3, tree_method="hist", n_jobs=1)
learner.fit(numbers, rows["y"])
{_END}"""


def wide(columns: int, path: Path) -> None:
    rng = np.random.default_rng(SEED)
    numbers = rng.normal(size=(WIDE_ROWS, columns)).round(4)
    table = pd.DataFrame(numbers, columns=[f"n{i}" for i in range(columns)])
    texts = [f"n{i}" for i in range(0, columns, 5)]
    table[texts] = rng.choice(["red", "green", "blue"], (WIDE_ROWS, len(texts)))
    y = (numbers[:, 1:10].sum(axis=1) + rng.normal(size=WIDE_ROWS) > 1).astype(int)
    table.copy().assign(y=y).to_csv(path, index=False)


def long(path: Path) -> None:
    rng = np.random.default_rng(SEED)
    numbers = rng.normal(size=(LONG_ROWS, 17)).round(4)
    table = pd.DataFrame(numbers, columns=[f"n{i}" for i in range(17)])
    for i in range(3):
        table[f"t{i}"] = rng.choice(["alpha", "beta", "gamma", "delta"], LONG_ROWS)
    table["y"] = (numbers[:, :6].sum(axis=1) + 2 * rng.normal(size=LONG_ROWS) > 3).astype(int)
    table.to_csv(path, index=False)


def measured(script: str, *arguments: Path) -> dict[str, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    return dict(json.loads(done.stdout[done.stdout.rindex("{") :]))  # behind DuckDB's progress bar


def rows_of(folder: Path, name: str, make: Callable[[Path], None]) -> tuple[list[Row], dict[str, float]]:
    table, out = folder / "table.csv", folder / "out"
    make(table)
    preprocessed, trained, plain = (measured(script, table, out) for script in (PREPROCESS, TRAIN, PLAIN))
    print(f"{name}: {preprocessed} {trained} {plain}", flush=True)
    both = preprocessed["cpu_s"] + trained["cpu_s"]
    found = [
        Row(f"{name}: preprocess", preprocessed["cpu_s"], "CPU s"),
        Row(f"{name}: train xgboost and export", trained["cpu_s"], "CPU s"),
        Row(f"{name}: plain script", plain["cpu_s"], "CPU s"),
        Row(f"{name}: both steps / plain script", both / plain["cpu_s"], "×"),
        Row(f"{name}: memory / plain script", max(preprocessed["mb"], trained["mb"]) / plain["mb"], "×"),
    ]
    return found, preprocessed


def main() -> int:
    rows: list[Row] = []
    per_column: dict[int, float] = {}
    with tempfile.TemporaryDirectory(prefix="serin-bench-") as name:
        for width in WIDTHS:
            folder = Path(name, str(width))
            folder.mkdir()
            found, preprocessed = rows_of(folder, f"{WIDE_ROWS} × {width}", partial(wide, width))
            rows += found
            per_column[width] = preprocessed["cpu_s"] / width
        growth = per_column[WIDTHS[-1]] / per_column[WIDTHS[1]]
        rows.append(Row(f"preprocess, CPU per column: {WIDTHS[-1]} / {WIDTHS[1]} columns", growth, "×", "<= 1.5"))
        folder = Path(name, "long")
        folder.mkdir()
        rows += rows_of(folder, f"{LONG_ROWS:,} × 20", long)[0]
    return report("data", rows, packages=PACKAGES)


if __name__ == "__main__":
    sys.exit(main())
