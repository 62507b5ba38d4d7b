"""`python -m pipelines.compile [FILE]`: write the graph as the YAML that runs everywhere."""

import sys
from pathlib import Path

from kfp import compiler

from pipelines import COMPILED
from pipelines.train_and_release import train_and_release


def compile_to(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(train_and_release, str(path))


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else COMPILED
    compile_to(target)
    print(target)
