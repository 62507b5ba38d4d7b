"""What goes into the images, without building them."""

import ast
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
OURS = ("serin", "components", "pipelines", "predictor")


def load() -> ModuleType:
    """docker/ is a folder of files, not a package: PyPI has one of that name."""
    spec = importlib.util.spec_from_file_location("images", ROOT / "docker/images.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


images = load()
DOCKERFILE = (ROOT / images.DOCKERFILE).read_text(encoding="utf-8")


# names


def test_an_image_is_named_by_what_it_copies_and_nothing_else() -> None:
    copied = {target: images.copied(images.stages(DOCKERFILE, target)) for target in images.TARGETS}
    assert copied == {
        "controller": ("docker/controller.lock", "serin"),
        "predictor": (
            "docker/predictor.lock", "serin/__init__.py", "serin/errors.py", "serin/model", "predictor",
        ),
        "pipeline": ("docker/pipeline.lock", "serin", "components"),
    }  # fmt: skip


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "docker").mkdir()
    (tmp_path / images.DOCKERFILE).write_text(DOCKERFILE, encoding="utf-8")
    for target in images.TARGETS:
        for path in images.copied(images.stages(DOCKERFILE, target)):
            file = tmp_path / path if "." in path else tmp_path / path / "module.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(path, encoding="utf-8")
    return tmp_path


def names(tree: Path, base: str = "python:3.11-slim") -> dict[str, str]:
    return {target: images.name(target, base, root=tree) for target in images.TARGETS}


@pytest.mark.parametrize(
    ("path", "renamed"),
    [
        ("docker/predictor.lock", {"predictor"}),
        ("serin/errors.py", set(images.TARGETS)),
        ("serin/module.py", {"controller", "pipeline"}),  # an image of another name makes a revision of every service
        ("components/new.py", {"pipeline"}),
        ("serin/__pycache__/module.pyc", set()),
        ("tests/test_x.py", set()),
    ],
)
def test_a_change_renames_the_images_it_goes_into(tree: Path, path: str, renamed: set[str]) -> None:
    before = names(tree)
    file = tree / path
    file.parent.mkdir(exist_ok=True)
    file.write_text("changed", encoding="utf-8")
    assert {target for target, name in names(tree).items() if name != before[target]} == renamed


def test_another_base_or_recipe_is_another_image(tree: Path) -> None:
    before = names(tree)
    assert set(names(tree, "python:3.12-slim").values()).isdisjoint(before.values())
    (tree / images.DOCKERFILE).write_text(DOCKERFILE.replace("PYTHONUNBUFFERED=1", ""), encoding="utf-8")
    assert set(names(tree).values()).isdisjoint(before.values())


@given(st.dictionaries(st.text(min_size=1), st.binary()), st.dictionaries(st.text(min_size=1), st.binary()))
def test_hashes_differ_as_contents_do(ours: dict[str, bytes], theirs: dict[str, bytes]) -> None:
    assert (images.content_hash(ours) == images.content_hash(theirs)) == (ours == theirs)
    assert images.content_hash(dict(reversed(ours.items()))) == images.content_hash(ours)


def test_manifests_get_the_names() -> None:
    text = "image: dev.local/serin/controller:dev\nimage: dev.local/other/controller:dev\n"
    filled = images.fill(text, {"controller": "dev.local/serin/controller:0123"})
    assert filled == "image: dev.local/serin/controller:0123\nimage: dev.local/other/controller:dev\n"


def test_no_placeholder_is_left_in_our_manifests() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "manifests").rglob("*.yaml")]
    filled = images.fill("".join(texts), dict.fromkeys(images.TARGETS, "named"))
    assert filled.count("image: named") == 2
    assert not re.search(r"image: \S+:dev\b", filled)


# the program


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins that write down how they are called."""
    calls = tmp_path / "calls"
    for program in ("docker", "kind", "minikube", "ctr"):
        file = tmp_path / program
        then = "cat" if program == "ctr" else "echo 1000000"
        file.write_text(f'#!/bin/sh\necho "{program} $*" >> {calls}\n{then}\n', encoding="utf-8")
        file.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for variable in (
        "DOCKER",
        "BASE_IMAGE",
        "IMAGE_REPOSITORY",
        "KIND_CLUSTER",
        "MINIKUBE_PROFILE",
        "CONTAINERD_SOCKET",
    ):
        monkeypatch.delenv(variable, raising=False)
    return calls


def program(*arguments: str, given: str = "") -> str:
    command = [sys.executable, "docker/images.py", *arguments]
    return subprocess.run(command, cwd=ROOT, input=given, capture_output=True, text=True, check=True).stdout


def test_build_makes_every_image_under_its_name(called: Path) -> None:
    told = program("build")
    for target in images.TARGETS:
        name = program("name", target).strip()
        assert f"{name}  1 MB" in told
        assert f"--target {target} -f docker/Dockerfile -t {name} " in called.read_text()


@pytest.mark.parametrize(
    ("cluster", "calls"),
    [
        ("kind", ["kind load docker-image {} --name serin"]),
        ("minikube", ["minikube -p serin image load {}"]),
        ("single-node", ["ctr --address /a/socket -n k8s.io images import -", "docker save {}"]),
    ],
)
def test_load_puts_every_image_on_the_cluster(
    called: Path, cluster: str, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTAINERD_SOCKET", "/a/socket")
    program("load", cluster)
    names = " ".join(program("name", target).strip() for target in images.TARGETS)
    assert sorted(called.read_text().splitlines()) == [call.format(names) for call in calls]


def test_fill_is_a_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_REPOSITORY", "registry.example/serin")
    name = program("name", "predictor").strip()
    assert name.startswith("registry.example/serin/predictor:")
    assert program("fill", given="image: dev.local/serin/predictor:dev\n") == f"image: {name}\n"


# packages

START = {
    "controller": ["serin.controller.__main__"],
    "predictor": ["predictor.__main__", "predictor.drill"],
    "pipeline": [
        *(f"components.{step}.component" for step in ("preprocess", "train", "evaluate", "deploy")),
        "serin.platforms.kserve.client",
    ],
}
NOT_IN_IMAGE = {
    "controller": ("serin.platforms.embedded",),  # with its Envoy it is for one machine only
    "predictor": ("predictor.rpc",),  # the runtime serves HTTP
    "pipeline": ("serin.platforms.embedded",),
}


def module_file(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def imported(file: Path) -> Iterator[str]:
    """Modules, also those imported inside functions, and not those for type checkers alone."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    checked = [
        node.body for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    ]
    never = {id(inner) for body in checked for node in body for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in never:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (name for alias in node.names if module_file(name := f"{node.module}.{alias.name}"))


def reached(target: str) -> tuple[set[str], set[str]]:
    """Our modules that the program of an image can import, and the packages of others."""
    queue, seen, others = list(START[target]), set[str](), set[str]()
    while queue:
        module = queue.pop()
        if module in seen or module.startswith(NOT_IN_IMAGE[target]):
            continue
        seen.add(module)
        file = module_file(module)
        assert file is not None, module
        for name in imported(file):
            top = name.split(".")[0]
            if top in OURS:
                queue += [".".join(name.split(".")[: i + 1]) for i in range(name.count(".") + 1)]
            elif top not in sys.stdlib_module_names:
                others.add(top)
    return {module for module in seen if module_file(module)}, others


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("target", images.TARGETS)
def test_an_image_has_the_packages_its_program_imports(target: str) -> None:
    lines = (ROOT / f"docker/{target}.in").read_text(encoding="utf-8").splitlines()
    listed = {normal(need.name) for need in map(Requirement, lines) if need.marker is None or need.marker.evaluate()}
    by_module = importlib.metadata.packages_distributions()
    needed = {normal(by_module[module][0]) for module in reached(target)[1]}
    assert listed == needed | ({"httptools", "uvloop"} if target == "predictor" else set())  # by uvicorn, if there


@pytest.mark.parametrize("target", images.TARGETS)
def test_an_image_has_the_sources_its_program_imports(target: str) -> None:
    files = images.sources(ROOT, images.copied(images.stages(DOCKERFILE, target)))
    needed = {file.relative_to(ROOT).as_posix() for module in reached(target)[0] if (file := module_file(module))}
    assert needed <= files.keys()


def pins(lock: Path) -> dict[str, tuple[str, frozenset[str]]]:
    text = lock.read_text(encoding="utf-8")
    found = re.findall(r"^([a-z0-9._-]+)==(\S+).*((?:\n    --hash=\S+.*)+)", text, re.M)
    return {name: (version, frozenset(re.findall(r"sha256:[0-9a-f]{64}", hashes))) for name, version, hashes in found}


@pytest.mark.parametrize("target", images.TARGETS)
def test_an_image_has_the_versions_that_are_tested(target: str) -> None:
    ours, everything = pins(ROOT / f"docker/{target}.lock"), pins(ROOT / "requirements.lock")
    assert ours
    assert ours.items() <= everything.items(), "write it anew with the command at its top"


# what may add code to a program


def test_no_variable_adds_code_to_the_programs_of_images() -> None:
    """PYTHONPATH in a model's folder ran its sitecustomize.py before the digest of the model was checked."""
    dockerfile = (ROOT / images.DOCKERFILE).read_text(encoding="utf-8")
    started = [json.loads(line) for line in re.findall(r"^ENTRYPOINT (.+)$", dockerfile, re.M)]
    assert [command[:3] for command in started] == [["/venv/bin/python", "-I", "-m"]] * 2
    assert "PYTHONPATH" not in dockerfile
    for manifest in (ROOT / "manifests").rglob("*.yaml"):
        assert not re.search(r"\bcommand: *\[.*python", manifest.read_text(encoding="utf-8")), manifest


def test_a_folder_that_a_variable_names_is_not_looked_into(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('run')")
    (tmp_path / "serin.py").write_text("print('run')")
    for options, said in ((["-I"], b""), ([], b"run\n")):
        command = [sys.executable, *options, "-c", ""]
        done = subprocess.run(
            command, env={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path, capture_output=True, timeout=30
        )
        assert done.stdout == said


# what is said when a program fails


def test_a_docker_that_fails_is_named_with_the_others_and_the_variable_that_chooses(tmp_path: Path) -> None:
    found = []
    for folder in ("first", "second", "third"):
        (tmp_path / folder).mkdir()
        program = tmp_path / folder / "docker"
        program.write_text(f"#!/bin/sh\n# {folder}\nexit 1\n")
        program.chmod(0o755)
        found.append(str(program))
    path = os.pathsep.join(str(tmp_path / each) for each in ("first", "second", "third"))
    said = images.failure("docker", 125, path)
    assert said.startswith(f"{found[0]} failed with 125; its output is above.")
    assert said.endswith(f"choose another one with DOCKER=FILE, such as {found[1]} or {found[2]}.")
    assert images.failure("docker", 125, str(tmp_path / "first")).endswith("with DOCKER=FILE.")
    assert images.failure("kind", 1, path) == "kind failed with 1; its output is above."


def test_make_images_says_which_docker_it_tried(tmp_path: Path) -> None:
    program = tmp_path / "docker"
    program.write_text("#!/bin/sh\necho 'BuildKit is enabled but the buildx component is missing' >&2\nexit 1\n")
    program.chmod(0o755)
    command = [sys.executable, str(ROOT / "docker" / "images.py"), "build"]
    done = subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert f"serin: {program} failed with 1" in done.stderr and "DOCKER=FILE" in done.stderr
