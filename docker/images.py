"""The images: how they are called, built, put on a cluster and named in manifests.

python docker/images.py name TARGET | build | load kind|minikube|single-node | fill < manifests

An image is called dev.local/serin/<target>:<hash of what goes into it>: the same sources have the same name on every
machine, and what is changed is never taken for what was loaded before. The environment can change BASE_IMAGE,
IMAGE_REPOSITORY, DOCKER, KIND_CLUSTER, MINIKUBE_PROFILE and CONTAINERD_SOCKET.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
DOCKERFILE: Final = Path("docker/Dockerfile")
TARGETS: Final = ("controller", "predictor", "pipeline")
REPOSITORY: Final = "dev.local/serin"
"""Knative does not ask a registry for the digests of images below dev.local."""
BASE: Final = "python:3.11-slim@sha256:9c900dea9e8fb7e16277c179b555cc72d29a352dbc33cff48ad5a0412fd5bfc7"
"""By its digest: a tag can come to mean another image."""
PLACEHOLDER: Final = "dev"
"""The tag that stands in manifests."""


def stages(dockerfile: str, target: str) -> str:
    """The text of a stage and of those it is made from."""
    found: list[tuple[str, str]] = re.findall(r"(^FROM \S+ AS (\S+)\n(?:(?!FROM ).*\n?)*)", dockerfile, re.M)
    texts = {stage: text for text, stage in found}
    needed = re.findall(r"^(?:FROM |COPY --from=)(\S+)", texts[target], re.M)
    return texts[target] + "".join(stages(dockerfile, stage) for stage in dict.fromkeys(needed) if stage in texts)


def copied(text: str) -> tuple[str, ...]:
    """Paths that stages copy from the source tree."""
    return tuple(path for given in re.findall(r"^COPY (?!--)(.+) \S+$", text, re.M) for path in given.split())


def content_hash(files: Mapping[str, bytes]) -> str:
    """Twelve hex digits over names and contents, in any order."""
    total = hashlib.sha256()
    for name, content in sorted(files.items()):
        total.update(f"{name} {len(content)}\n".encode() + content)
    return total.hexdigest()[:12]


def sources(root: Path, paths: Iterable[str]) -> dict[str, bytes]:
    """Files at and below `paths`, as the build sees them: without bytecode."""
    places = [root / path for path in paths]
    found = [each for place in places for each in (place.rglob("*") if place.is_dir() else [place])]
    files = (each for each in found if each.is_file() and "__pycache__" not in each.parts)
    return {each.relative_to(root).as_posix(): each.read_bytes() for each in files}


def name(target: str, base: str, repository: str = REPOSITORY, root: Path = ROOT) -> str:
    recipe = stages((root / DOCKERFILE).read_text(encoding="utf-8"), target)
    files = {**sources(root, copied(recipe)), "recipe": recipe.encode(), "base": base.encode()}
    return f"{repository}/{target}:{content_hash(files)}"


def fill(manifests: str, names: Mapping[str, str]) -> str:
    """The manifests with the images' names in place of their placeholders."""
    for target, full in names.items():
        manifests = manifests.replace(f"{REPOSITORY}/{target}:{PLACEHOLDER}", full)
    return manifests


def _build(target: str, full: str, base: str, docker: str) -> None:
    options = ["--build-arg", f"BASE_IMAGE={base}", "--target", target, "-f", str(DOCKERFILE), "-t", full, "-q"]
    subprocess.run([docker, "build", *options, "."], cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
                   env={**os.environ, "DOCKER_BUILDKIT": "1"})  # fmt: skip
    size = subprocess.run([docker, "image", "inspect", "-f", "{{.Size}}", full], check=True, capture_output=True)
    print(f"{full}  {int(size.stdout) / 1e6:.0f} MB")


def _load(cluster: str, names: Iterable[str], docker: str) -> None:
    if cluster == "kind":
        command = ["kind", "load", "docker-image", *names, "--name", _setting("KIND_CLUSTER", "serin")]
        subprocess.run(command, check=True)
    elif cluster == "minikube":
        command = ["minikube", "-p", _setting("MINIKUBE_PROFILE", "serin"), "image", "load", *names]
        subprocess.run(command, check=True)
    else:
        socket = _setting("CONTAINERD_SOCKET", "/run/containerd/containerd.sock")
        with subprocess.Popen([docker, "save", *names], stdout=subprocess.PIPE) as save:
            into = ["ctr", "--address", socket, "-n", "k8s.io", "images", "import", "-"]
            subprocess.run(into, stdin=save.stdout, check=True)
        if save.returncode:
            raise subprocess.CalledProcessError(save.returncode, save.args)


def failure(program: str, status: int, path: str) -> str:
    """What to say of a program that failed: which file it was, and which others of its name there are."""
    found = shutil.which(program, path=path) or program
    said = f"{found} failed with {status}; its output is above."
    if Path(found).name != "docker":
        return said
    here = {Path(folder, "docker").resolve(): Path(folder, "docker") for folder in reversed(path.split(os.pathsep))}
    others = [str(name) for real, name in here.items() if os.access(real, os.X_OK) and real != Path(found).resolve()]
    needs = "It must be able to build with BuildKit; choose another one with DOCKER=FILE"
    return f"{said} {needs}" + (f", such as {' or '.join(reversed(others))}." if others else ".")


def _setting(variable: str, default: str) -> str:
    return os.environ.get(variable) or default


def main() -> int:
    parser = argparse.ArgumentParser(prog="docker/images.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("name", help="print a name").add_argument("target", choices=TARGETS)
    commands.add_parser("build", help="make all")
    commands.add_parser("load").add_argument("cluster", choices=("kind", "minikube", "single-node"))
    commands.add_parser("fill", help="set the tags of manifests on standard input")
    arguments = parser.parse_args()
    base, docker = _setting("BASE_IMAGE", BASE), _setting("DOCKER", "docker")
    repository = _setting("IMAGE_REPOSITORY", REPOSITORY)
    names = {target: name(target, base, repository) for target in TARGETS}
    try:
        match arguments.command:
            case "name":
                print(names[arguments.target])
            case "build":
                for target, full in names.items():
                    _build(target, full, base, docker)
            case "load":
                _load(arguments.cluster, names.values(), docker)
            case "fill":
                print(fill(sys.stdin.read(), names), end="")
    except FileNotFoundError as error:
        print(f"serin: {error.filename} is not on the PATH; install it, or set DOCKER.", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"serin: {failure(error.cmd[0], error.returncode, os.environ.get('PATH', ''))}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
