"""`python -m pipelines.local COMPILED ARGUMENTS ROOT`: execute a compiled pipeline with kfp.local.

A process of its own: kfp.local prints freely, patches `print`, and has no progress hooks; `pipelines.run` reads
what it says.
"""

import json
import os
import signal
import sys
import warnings
from pathlib import Path

# kfp.local takes any `docker` that can be imported for Docker's client. Our packages lie at the repository's root, so
# the development install has it on the import path, and with it the folder docker/
sys.modules["docker"] = None  # type: ignore[assignment]

from kfp import components, local  # noqa: E402

from serin import parent  # noqa: E402


def run(compiled: Path, arguments: Path, root: Path) -> None:
    """`arguments`: a JSON object of the pipeline's parameters. Raises RuntimeError when a task fails."""
    # kfp.local puts sys.executable, unquoted, in place of every "python3" in a shell command, paths of the user
    # included; as plain "python3", found on PATH, it changes nothing and spaces do no harm
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    sys.executable = "python3"
    # the image is not pulled here: the step runs in this very environment
    warnings.filterwarnings("ignore", message=".*may not be compatible.*")
    warnings.filterwarnings("ignore", message=".*limit.* have no effect in the current local runner.*")
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(root),
        raise_on_error=True,
        enable_caching=False,
    )
    pipeline = components.load_component_from_file(str(compiled))
    pipeline(**json.loads(arguments.read_text(encoding="utf-8")))


if __name__ == "__main__":
    if os.getpgrp() == os.getpid():  # else the group is not ours to end
        parent.watch(lambda: os.killpg(0, signal.SIGKILL))  # with the step that is running
    run(*map(Path, sys.argv[1:]))
