"""Directions of import, checked on the source: pipelines -> components -> serin; who may know what."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("serin", "components", "pipelines", "predictor")
MODULES = sorted(path for package in OURS for path in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def forbidden(path: Path) -> tuple[str, ...]:
    module = path.relative_to(ROOT)
    names: list[str] = []
    if module.parts[0] == "serin":
        names += ["kfp", "sklearn", "xgboost", "onnx", "kserve", "components", "pipelines", "predictor"]
        if module.parts[1:3] != ("platforms", "kserve"):
            names.append("kubernetes")
    if module.parts[0] == "predictor":
        names += ["kfp", "sklearn", "xgboost", "kubernetes", "components", "pipelines", "pickle", "joblib"]
    if module.parts[0] == "components":
        names += ["pipelines", "predictor", "kubernetes"]
        if module.name != "component.py":
            names.append("kfp")
    return tuple(names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    wrong = [name for name in imported(path) if name.split(".")[0] in forbidden(path)]
    assert not wrong, f"{path.relative_to(ROOT)} may not import {wrong}"


def test_the_check_finds_what_it_looks_for(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text("import os\ndef f():\n    from kfp.dsl import If\n", encoding="utf-8")
    assert set(imported(file)) == {"os", "kfp.dsl", "kfp.dsl.If"}


@pytest.mark.parametrize("path", sorted(ROOT.glob("components/*/component.py")), ids=lambda path: path.parent.name)
def test_shells_import_at_the_top_only_what_kfp_needs(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in top}
    assert names <= {"typing", "kfp", "components.shell"}


IMPORTERS = [path for path in MODULES if any(name.split(".")[0] == "onnxruntime" for name in imported(path))]
STOP_AT_ONNX_RUNTIME = """
import importlib, os, sys
class Stop:
    def find_spec(name, *_):
        if name == "onnxruntime":
            sys.exit(os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.meta_path.insert(0, Stop)
importlib.import_module(sys.argv[1])
"""


@pytest.mark.parametrize("path", IMPORTERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_usage_data_leaves(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    ended = subprocess.run(
        [sys.executable, "-c", STOP_AT_ONNX_RUNTIME, module],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ended.stderr == "1\n"


def test_both_who_score_are_held_to_it() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in IMPORTERS} == {"components", "predictor"}
