"""What the embedded platform writes down for a rollout, and what it tells about it."""

import errno
import os
import re
import shutil
import socket
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import embedded
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serin import model
from serin.errors import UserError
from serin.platforms import connect
from serin.platforms.embedded import takeover
from serin.platforms.embedded.platform import EmbeddedPlatform, Gateway
from serin.platforms.embedded.store import RevisionRecord, Server, Service, Store
from serin.platforms.embedded.takeover import TakeOvers, remove_leftovers, take_over
from serin.rollout.document import Candidate, Concurrency, EnvVar, Metadata, ModelRollout, Phase, Spec, Status
from serin.rollout.reconcile import CreateCandidate, Discard, Promote, RunChecks, SetSplit, reconcile
from serin.rollout.turns import active_rollouts

STABLE, FIRST, SECOND = "churn-predictor-00001", "churn-predictor-00002", "churn-predictor-00003"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("models") / "a model"
    embedded.write_model(root)
    return root


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "home")
    yield opened
    opened.close()


def rollout(name: str, folder: Path, *, service: str = "churn", **changes: object) -> ModelRollout:
    status = Status(**{key: changes.pop(key) for key in ("phase",) if key in changes})
    candidate = Candidate(storage_uri=str(folder), env=(EnvVar(name="SERIN_FAULT", value="errors"),))
    spec = Spec(service=service, candidate=candidate, **changes)
    return ModelRollout(metadata=Metadata(name=name), spec=spec, status=status)


# models


def fetch(store: Store, candidate: Candidate) -> str:
    return take_over(store.home, candidate, lambda _: None)


def at_once(store: Store) -> TakeOvers:
    return TakeOvers(store.home, start=lambda job: job())


def test_a_model_is_copied_checked_and_kept(store, folder):
    for uri in (str(folder), folder.as_uri()):
        digest = fetch(store, Candidate(storage_uri=uri, digest=model.digest(folder)))
        copies = list((store.home / "models").iterdir())
        assert digest == model.digest(folder) == model.digest(copies[0]) and len(copies) == 1


def damaged(folder: Path, target: Path, damage: Callable[[Path], object]) -> Path:
    shutil.copytree(folder, target)
    damage(target)
    return target


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda root: (root / model.MODEL_FILE).write_bytes(b"another model"), "does not match its digest"),
        (lambda root: (root / model.MODEL_FILE).unlink(), "model/model.onnx is missing"),
        (lambda root: (root / "model" / "extra.pkl").write_bytes(b""), "model/extra.pkl was added after export"),
        (lambda root: (root / model.DIGESTS_FILE).unlink(), "not a model directory"),
        (lambda root: ((root / model.SIGNATURE_FILE).unlink(), model.seal(root)), "cannot be taken over"),
        (lambda root: ((root / model.SIGNATURE_FILE).write_text("{}"), model.seal(root)), "cannot be taken over"),
    ],
)
def test_a_damaged_model_is_refused_by_name(store, folder, tmp_path, damage, why):
    with pytest.raises(UserError, match=why):
        fetch(store, Candidate(storage_uri=str(damaged(folder, tmp_path / "bad", damage))))
    assert not any((store.home / "models").glob("*"))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"storage_uri": "/there/is/nothing"}, "/there/is/nothing is not a model directory"),
        ({"storage_uri": "s3://bucket/model"}, "reads file:// and plain paths only"),
        ({"runtime": "tensorflow"}, "no runtime tensorflow; known: serin-onnx, serin-drill"),
        ({"digest": "sha256:" + "0" * 64}, "expected sha256:0000"),
    ],
)
def test_what_cannot_be_released_says_why(store, folder, changes, why):
    with pytest.raises(UserError, match=why):
        fetch(store, Candidate(**{"storage_uri": str(folder)} | changes))


def link_out(root: Path) -> None:
    (root / model.MODEL_FILE).unlink()
    (root / model.MODEL_FILE).symlink_to("/etc/passwd")


def loop(root: Path) -> None:
    (root / "model" / "again").symlink_to("..")


def hole(root: Path) -> None:
    with (root / model.MODEL_FILE).open("r+b") as file:
        file.truncate(2**40)


def crowd(root: Path) -> None:
    for number in range(1001):
        (root / "meta" / f"{number}").touch()


def device(root: Path) -> None:
    try:
        os.mknod(root / "model" / "zero", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    except PermissionError:  # who cannot make one cannot plant one either
        pytest.skip("only root can make a device file")


def bind(root: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(root / "meta" / "s"))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (link_out, r"model/model\.onnx is a symbolic link"),
        (loop, "model/again is a symbolic link"),
        (hole, r"file model/model\.onnx is sparse"),
        (crowd, "more than 1,000 files"),
        (lambda root: os.mkfifo(root / "model" / "pipe"), "model/pipe is a named pipe"),
        (bind, "meta/s is a socket"),
        (device, "model/zero is a device"),
    ],
)
def test_what_is_no_plain_file_is_refused_before_anything_is_copied(store, folder, tmp_path, damage, why):
    bad = damaged(folder, tmp_path / "bad", damage)
    with pytest.raises(UserError, match=why):
        fetch(store, Candidate(storage_uri=str(bad)))
    assert not (store.home / "models").exists()


def test_a_model_that_does_not_fit_on_the_disk_is_refused_before_anything_is_copied(store, folder, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    with pytest.raises(UserError, match="only 1 MB are free"):
        fetch(store, Candidate(storage_uri=str(folder)))
    assert not any((store.home / "models").iterdir())


def test_a_copy_that_failed_or_was_never_finished_leaves_nothing(store, folder, monkeypatch):
    partial = store.home / "models" / "0123.partial"
    partial.mkdir(parents=True)
    (partial / "half").touch()
    remove_leftovers(store.home)
    assert not partial.exists()

    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot be taken over.*No space left"):
        fetch(store, Candidate(storage_uri=str(folder)))
    assert not any((store.home / "models").iterdir())


def test_a_copy_becomes_a_model_only_when_its_digests_are_right(store, folder, monkeypatch):
    """The source changes between its own check and the copy."""
    monkeypatch.setattr(takeover, "_copy", lambda source, target, size: iter([target.write_bytes(b"other")]))
    with pytest.raises(UserError, match="partial"):
        fetch(store, Candidate(storage_uri=str(folder)))
    assert not any((store.home / "models").iterdir())


def test_a_model_is_taken_over_beside_the_loop_once_and_that_is_said(store, folder):
    jobs: list[Callable[[], None]] = []
    platform = EmbeddedPlatform(store, TakeOvers(store.home, start=jobs.append))
    wanted = rollout("r", folder)
    for _ in range(3):
        seen = platform.observe(wanted, Gateway())
        status, actions = reconcile(wanted.spec, wanted.status, seen, datetime.now(UTC))
        assert (status.phase, actions) == (Phase.PENDING, ()) and "taken over" in status.reason
    platform.apply(wanted, CreateCandidate())
    assert store.service("churn", "default") is None, "there is no model to start yet"
    assert len(jobs) == 1
    jobs[0]()
    seen = platform.observe(wanted, Gateway())
    assert reconcile(wanted.spec, wanted.status, seen, datetime.now(UTC))[0].phase is Phase.DARK
    platform.apply(wanted, CreateCandidate())
    assert service(store).candidate == "churn-predictor-00001"


def test_how_far_a_model_is_taken_over_is_told_in_bytes(store, folder):
    told: list[str] = []
    take_over(store.home, Candidate(storage_uri=str(folder)), told.append)
    assert any(re.fullmatch(r"taking over the model: \d+ of \d+ MB", each) for each in told)
    assert told[-1].startswith("checking the model")


def test_a_copy_that_was_damaged_later_is_noticed(store, folder):
    fetch(store, Candidate(storage_uri=str(folder)))
    copy = next((store.home / "models").iterdir())
    (copy / model.MODEL_FILE).write_bytes(b"bit rot")
    with pytest.raises(UserError, match="does not match its digest"):
        fetch(store, Candidate(storage_uri=str(folder)))


# who may act


def test_of_one_service_the_oldest_acts_and_the_others_wait(folder):
    line = [rollout(name, folder) for name in ("a", "b", "c")] + [rollout("d", folder, service="fraud")]
    assert [(each.metadata.name, waits, by) for each, waits, by in active_rollouts(line)] == [
        ("a", None, None),
        ("b", "a", None),
        ("c", "a", None),
        ("d", None, None),
    ]


def test_one_that_has_begun_acts_whatever_the_order_of_names_made_in_one_second(folder):
    begun = rollout("b", folder)
    begun = begun.model_copy(update={"status": Status(phase=Phase.DARK)})
    line = [rollout("a", folder), begun, rollout("c", folder)]
    assert [(each.metadata.name, waits) for each, waits, _ in active_rollouts(line)] == [
        ("b", None),
        ("a", "b"),
        ("c", "b"),
    ]


def test_a_superseding_rollout_ends_all_that_are_older(folder):
    line = [
        rollout("a", folder),
        rollout("b", folder, concurrency=Concurrency.SUPERSEDE),
        rollout("c", folder, concurrency=Concurrency.SUPERSEDE),
        rollout("d", folder),
    ]
    assert [(waits, by) for _, waits, by in active_rollouts(line)] == [
        (None, "c"),
        ("a", "c"),
        ("a", None),
        ("a", None),
    ]


# actions


def with_stable(store: Store, folder: Path) -> EmbeddedPlatform:
    fetch(store, Candidate(storage_uri=str(folder)))
    copy = next((store.home / "models").iterdir())
    store.save_revision(
        RevisionRecord(
            "default", STABLE, "churn", copy, model.digest(copy), "serin-onnx", {}, servers=(Server(1, "boot:1"),)
        )
    )
    store.save_service(Service("default", "churn", STABLE, None, None, 0, 1))
    return EmbeddedPlatform(store, at_once(store))


def service(store: Store) -> Service:
    found = store.service("churn", "default")
    assert found is not None
    return found


def test_a_candidate_comes_gets_traffic_and_becomes_stable(store, folder):
    platform, wanted = with_stable(store, folder), rollout("r", folder)
    platform.apply(wanted, CreateCandidate())
    assert service(store) == Service("default", "churn", STABLE, FIRST, "r", 0, 2)
    record = store.revision(FIRST, "default")
    assert record is not None and record.env == {"SERIN_FAULT": "errors"} and record.servers == ()
    platform.apply(wanted, RunChecks(FIRST, STABLE))
    platform.apply(wanted, SetSplit(STABLE, FIRST, 25))
    assert service(store).percent == 25
    platform.apply(wanted, Promote(FIRST, STABLE))
    before = store.revision(STABLE, "default")
    assert service(store) == Service("default", "churn", FIRST, None, None, 0, 2, before.digest)


def test_a_candidate_that_goes_leaves_stable_with_everything(store, folder):
    platform, wanted = with_stable(store, folder), rollout("r", folder)
    platform.apply(wanted, CreateCandidate())
    platform.apply(wanted, SetSplit(STABLE, FIRST, 25))
    platform.apply(wanted, Discard(FIRST, STABLE))
    assert service(store) == Service("default", "churn", STABLE, None, None, 0, 2)
    platform.apply(rollout("r2", folder), CreateCandidate())
    assert service(store).candidate == SECOND, "a revision's name is never used again"


@pytest.mark.parametrize(
    "action",
    [
        SetSplit(STABLE, SECOND, 25),
        SetSplit(SECOND, FIRST, 25),
        Promote(SECOND, STABLE),
        Discard(SECOND, STABLE),
        CreateCandidate(),
    ],
)
def test_an_action_about_revisions_not_in_place_does_nothing(store, folder, action):
    platform, wanted = with_stable(store, folder), rollout("r", folder)
    platform.apply(wanted, CreateCandidate())
    before = store.services(), store.revisions()
    platform.apply(wanted, action)
    assert (store.services(), store.revisions()) == before


def test_traffic_can_be_withdrawn_whatever_the_rollout_wants(store, folder):
    platform, wanted = with_stable(store, folder), rollout("r", folder)
    platform.apply(wanted, CreateCandidate())
    platform.apply(wanted, SetSplit(STABLE, FIRST, 25))
    platform.withdraw(rollout("another", folder))
    assert service(store).percent == 25
    platform.withdraw(wanted)
    assert service(store).percent == 0 and service(store).candidate == FIRST


names = st.sampled_from((STABLE, FIRST, SECOND))
actions = st.one_of(
    st.just(CreateCandidate()),
    st.builds(RunChecks, names, names),
    st.builds(SetSplit, names, names, st.sampled_from((0, 5, 50, 99))),
    st.builds(Promote, names, names),
    st.builds(Discard, names, names),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=st.lists(st.tuples(st.sampled_from(("a", "b")), actions), max_size=8))
def test_any_action_twice_is_the_same_as_once(tmp_path_factory, folder, wanted):
    store = Store(tmp_path_factory.mktemp("home"))
    platform = with_stable(store, folder)
    for name, action in wanted:
        platform.apply(rollout(name, folder), action)
        once = store.services(), [each.name for each in store.revisions()]
        platform.apply(rollout(name, folder), action)
        assert (store.services(), [each.name for each in store.revisions()]) == once
        found = service(store)
        assert found.stable is not None and found.candidate != found.stable
        assert (found.candidate is None) == (found.rollout is None)
        assert found.candidate is not None or found.percent == 0
    store.close()


# observations


def test_an_observation_tells_what_the_gateway_confirms(store, folder):
    platform, wanted = with_stable(store, folder), rollout("r", folder, phase=Phase.PROGRESSING)
    platform.apply(wanted, CreateCandidate())
    gateway = Gateway(healthy=frozenset({f"default/{STABLE}", f"default/{FIRST}"}), splits={("default", "churn"): 5})
    seen = platform.observe(wanted, gateway)
    assert seen.stable.name == STABLE and seen.stable.ready and seen.split == 5
    assert seen.candidate.name == FIRST and not seen.candidate.ready, "it has no process yet"
    assert platform.observe(wanted, Gateway()).stable.ready is False
    assert platform.observe(rollout("other", folder, phase=Phase.DARK), gateway).candidate is None


def test_a_model_that_cannot_be_had_refuses_a_rollout_before_it_begins(store, folder):
    platform = with_stable(store, folder)
    assert "not a model directory" in platform.observe(rollout("r", Path("/nothing")), Gateway()).refusal
    assert platform.observe(rollout("r2", folder), Gateway()).refusal is None
    waiting = platform.observe(rollout("r3", Path("/nothing")), Gateway(), waits_for="older")
    assert (waiting.refusal, waiting.waits_for) == (None, "older")


def test_there_are_no_platforms_of_other_names():
    for name in ("embedded:", "swarm:x", ""):
        with pytest.raises(UserError, match="no platform"):
            connect(name)
