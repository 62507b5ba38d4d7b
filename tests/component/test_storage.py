"""Models and tables by address, on a real S3 server and in folders."""

from pathlib import Path

import predictor_models
import pytest

from components import storage
from components.config import Config, Store, with_store
from components.deploy.core import address
from components.preprocess import sources
from serin import model
from serin.errors import TryAgain, UserError

S3 = Store(uri="minio://bucket/serin")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    predictor_models.write(tmp_path / "a model")
    return tmp_path / "a model"


@pytest.mark.usefixtures("s3")
def test_a_model_goes_to_the_store_and_comes_back_whole(folder: Path, tmp_path: Path) -> None:
    digest = model.digest(folder)
    stored = storage.store_model(folder, S3, "churn")
    assert stored == f"s3://bucket/serin/models/churn/{digest.removeprefix('sha256:')[:16]}"
    fetched = storage.fetch_model(f"minio{stored.removeprefix('s3')}/", tmp_path / "fetched", digest=digest)
    assert fetched == tmp_path / "fetched"
    model.verify(fetched, digest)
    with pytest.raises(UserError, match="expected sha256:other"):
        storage.fetch_model(stored, tmp_path / "again", digest="sha256:other")


@pytest.mark.usefixtures("s3")
def test_what_was_changed_in_the_store_is_found(folder: Path, tmp_path: Path) -> None:
    digest = model.digest(folder)
    stored = storage.store_model(folder, Store(uri="s3://bucket/changed"), "churn")
    (tmp_path / "other").write_text("other", encoding="utf-8")
    storage.put(tmp_path / "other", stored, "model/model.onnx")
    with pytest.raises(UserError, match=r"model/model.onnx does not match"):
        storage.fetch_model(stored, tmp_path / "fetched", digest=digest)


@pytest.mark.usefixtures("s3")
def test_a_model_half_stored_is_stored_again_and_a_whole_one_is_left_alone(folder: Path, tmp_path: Path) -> None:
    store = Store(uri="s3://bucket/half")
    stored = storage.store_model(folder, store, "churn")
    (tmp_path / "other").write_text("other", encoding="utf-8")
    storage.put(tmp_path / "other", stored, "meta/card.md")
    storage.store_model(folder, store, "churn")
    storage.get(stored, "meta/card.md", tmp_path / "card")
    assert (tmp_path / "card").read_text() == "other"

    half = Store(uri="s3://bucket/half2")
    place = f"s3://bucket/half2/models/churn/{stored.rpartition('/')[2]}"
    storage.put(tmp_path / "other", place, "meta/card.md")
    assert storage.store_model(folder, half, "churn") == place
    model.verify(storage.fetch_model(place, tmp_path / "fetched"))


@pytest.mark.usefixtures("s3")
def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model at s3://bucket/none"):
        storage.fetch_model("s3://bucket/none", tmp_path / "model")
    with pytest.raises(UserError, match="nothing at s3://bucket/none"):
        storage.get("s3://bucket", "none", tmp_path / "file")
    with pytest.raises(UserError, match="nothing at s3://elsewhere"):
        storage.check(Store(uri="s3://elsewhere"))


@pytest.mark.usefixtures("s3")
def test_without_credentials_nobody_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(UserError, match="AWS_ACCESS_KEY_ID"):
        storage.fetch_model("s3://bucket/model", tmp_path / "model")


@pytest.mark.usefixtures("s3")
def test_a_store_that_does_not_answer_may_be_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(storage, "RETRIES", 0)
    with pytest.raises(TryAgain, match="s3://bucket"):
        storage.names("s3://bucket")


@pytest.mark.usefixtures("s3")
def test_a_table_is_read_from_a_store_and_checked(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("a,b\n1,2\n", encoding="utf-8")
    storage.put(table, "s3://bucket/data", "my table.csv")
    sha256 = sources.sha256_of(table)
    fetched = sources.fetch("minio://bucket/data/my table.csv", sha256, tmp_path / "scratch")
    assert fetched.read_bytes() == table.read_bytes()
    with pytest.raises(UserError, match=r"data\.sha256"):
        sources.fetch("s3://bucket/data/my table.csv", "0" * 64, tmp_path / "scratch")


def test_a_claim_is_a_folder_that_is_mounted_here(folder: Path, tmp_path: Path) -> None:
    store = Store(uri="pvc://models/serin", folder=tmp_path / "mounted")
    with pytest.raises(UserError, match="mount pvc://models/serin"):
        storage.check(store)
    (tmp_path / "mounted").mkdir()
    storage.check(store)
    stored = storage.store_model(folder, store, "churn")
    assert stored.startswith("pvc://models/serin/models/churn/")
    fetched = storage.fetch_model(stored, tmp_path / "unused", digest=model.digest(folder), store=store)
    assert fetched.is_relative_to(tmp_path / "mounted")
    for other in ("pvc://models/serin2/x", "pvc://elsewhere/x"):
        with pytest.raises(UserError, match="not mounted on this machine"):
            storage.fetch_model(other, tmp_path, store=store)
    with pytest.raises(UserError, match="cannot be read; models come from"):
        storage.fetch_model("hf://somebody/model", tmp_path, store=store)


def test_a_folder_is_taken_as_it_is(folder: Path, tmp_path: Path) -> None:
    assert storage.champion(str(folder), model.digest(folder), tmp_path, None) == folder
    assert storage.champion("", "", tmp_path, None) is None
    (folder / model.MODEL_FILE).write_bytes(b"bit rot")
    assert storage.champion(str(folder), model.digest(folder), tmp_path, None) is None
    assert storage.champion(str(tmp_path / "moved away"), "", tmp_path, None) is None


def config(**changes: object) -> Config:
    return Config.model_validate(
        {"service": "churn", "data": {"source": "x.csv"}, "target": "y", "positive": "1", **changes}
    )


def test_the_environment_names_the_store_before_the_config_does() -> None:
    given = config(store={"uri": "s3://here"})
    assert with_store(given, {}).store == Store(uri="s3://here")
    environ = {"SERIN_MODEL_STORE": "pvc://models", "SERIN_MODEL_STORE_FOLDER": "/mnt"}
    assert with_store(given, environ).store == Store(uri="pvc://models", folder=Path("/mnt"))
    with pytest.raises(UserError, match="SERIN_MODEL_STORE=models"):
        with_store(given, {"SERIN_MODEL_STORE": "models"})


def test_a_cluster_gets_an_address_it_can_read(folder: Path, tmp_path: Path) -> None:
    claim = {"store": {"uri": "pvc://models", "folder": str(tmp_path)}}
    assert address(config(), "embedded:/somewhere", folder, str(folder)) == str(folder)
    assert address(config(), "kserve:serving", folder, "minio://bucket/run/model") == "s3://bucket/run/model"
    assert address(config(**claim), "kserve:serving", folder, str(folder)).startswith("pvc://models/models/churn/")
    with pytest.raises(UserError, match="SERIN_MODEL_STORE"):
        address(config(), "kserve:serving", folder, str(folder))
