"""Models and tables by address: folders of this machine, object stores, and claims that are mounted here.

Object stores are asked with the environment variables that every AWS SDK reads (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL,
…). `minio://` is how KFP may call an S3 store; nobody else knows it, so it is written `s3://` everywhere else.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from components.config import Store
from serin import model
from serin.errors import TryAgain, UserError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

OBJECT_STORES: Final = ("s3", "gs")
CLAIM: Final = "pvc"
TIMEOUT_S: Final = 60.0
RETRIES: Final = 3
RETRY_DELAY_S: Final = 10.0
S3_CREDENTIALS: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_SKIP_SIGNATURE",
)
"""Without one of these the client would ask the machine's metadata service, and wait."""


def canonical(address: str) -> str:
    """With `s3://` in place of `minio://`, and no slash at the end."""
    scheme, separator, rest = address.partition("://")
    return f"s3://{rest.rstrip('/')}" if separator and scheme == "minio" else address.rstrip("/")


def in_object_store(address: str) -> bool:
    return urlsplit(canonical(address)).scheme in OBJECT_STORES


def fetch_model(address: str, directory: Path, *, digest: str | None = None, store: Store | None = None) -> Path:
    """The model directory at `address` as a folder of this machine; what has to be fetched lands in `directory`.

    `address`: a path, s3://, gs://, minio://, or a pvc:// that `store` says is mounted here. Raises `UserError` when
    it cannot be read, or when it is not, file by file, the model of that `digest` (None: not checked).
    """
    address = canonical(address)
    if "://" not in address:
        folder = Path(address)
    elif in_object_store(address):
        folder = directory
        _get_all(address, folder)
    else:
        folder = _mounted(address, store)
    if digest is not None:
        model.verify(folder, digest)
    return folder


def champion(address: str, digest: str, directory: Path, store: Store | None) -> Path | None:
    """`fetch_model` for a step's parameters, where empty means that there is none. Nor is there one to compare with
    when its files were damaged or moved away: that must not keep a new model from taking its place."""
    if not address:
        return None
    folder = fetch_model(address, directory, store=store)
    try:
        model.verify(folder, digest or None)
    except UserError as error:
        print(f"The model being served cannot be compared: {error}", flush=True)
        return None
    return folder


def store_model(folder: Path, store: Store, service: str) -> str:
    """Copy a sealed model directory into `store`, unless it is there; return its address as KServe reads it.

    It is named by its digest, and `meta/digests.json` is written last: what has one is whole.
    """
    address = f"{canonical(store.uri)}/models/{service}/{model.digest(folder).removeprefix('sha256:')[:16]}"
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    files = [*(file for file in files if file != model.DIGESTS_FILE), model.DIGESTS_FILE]
    if in_object_store(address):
        if model.DIGESTS_FILE.as_posix() not in names(address):
            for file in files:
                put(folder / file, address, file.as_posix())
    else:
        target = _mounted(address, store)
        if not (target / model.DIGESTS_FILE).exists():
            for file in files:
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / file, target / file)
    return address


def check(store: Store) -> None:
    """Raises `UserError` or `TryAgain` when a model could not be stored there, as far as looking can tell."""
    if in_object_store(store.uri):
        names(f"{store.uri}/models")
    elif not _mounted(canonical(store.uri), store).is_dir():
        raise UserError(f"store.folder: there is no folder {store.folder}; mount {store.uri} there.")


def get(address: str, name: str, file: Path) -> None:
    """The object `name` under `address`, as `file`."""
    import obstore

    with file.open("wb") as out, _asking(f"{address}/{name}"):
        for chunk in obstore.get(_objects(address), name).stream():
            out.write(chunk)


def put(file: Path, address: str, name: str) -> None:
    """`file` as the object `name` under `address`."""
    import obstore

    with file.open("rb") as content, _asking(f"{address}/{name}"):
        obstore.put(_objects(address), name, content)


def names(address: str) -> list[str]:
    """What an object store has under `address`, as paths relative to it."""
    import obstore

    with _asking(address):
        return sorted(entry["path"] for page in obstore.list(_objects(address)) for entry in page)


def _get_all(address: str, directory: Path) -> None:
    found = names(address)
    if not found:
        raise UserError(f"There is no model at {address}; correct the address.")
    for name in found:
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        get(address, name, file)


def _mounted(address: str, store: Store | None) -> Path:
    """Where the claim's folder is on this machine."""
    if urlsplit(address).scheme != CLAIM:
        raise UserError(f"{address} cannot be read; models come from folders, s3://, gs:// and pvc://.")
    root = canonical(store.uri) if store else ""
    if store is None or store.folder is None or not f"{address}/".startswith(f"{root}/"):
        raise UserError(
            f"{address} is not mounted on this machine; name the claim in store.uri and its folder in store.folder."
        )
    return store.folder / address.removeprefix(root).lstrip("/")


def _objects(address: str) -> "ObjectStore":
    from obstore.store import from_url

    address = canonical(address)
    if urlsplit(address).scheme not in OBJECT_STORES:
        raise UserError(f"{address} is not in an object store; use s3:// or gs://.")
    if address.startswith("s3://") and not any(os.environ.get(name) for name in S3_CREDENTIALS):
        raise UserError(f"No credentials for {address}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.")
    return from_url(
        address,
        client_options={
            "allow_http": os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"),
            "timeout": timedelta(seconds=TIMEOUT_S),
        },
        retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=TIMEOUT_S)},
    )


@contextmanager
def _asking(address: str) -> Iterator[None]:
    """The store's own errors as serin's two kinds."""
    from obstore import exceptions

    try:
        yield
    except (FileNotFoundError, exceptions.BaseError) as error:
        reason = str(error).partition("\n")[0]
        # what listing is refused comes as a GenericError with the answer in its text
        if isinstance(error, FileNotFoundError) or "404 Not Found" in reason:
            raise UserError(f"There is nothing at {address}; correct the address.") from error
        if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError) or "403 F" in reason:
            raise UserError(f"The credentials do not give access to {address}; correct AWS_ACCESS_KEY_ID.") from error
        raise TryAgain(f"{address} cannot be reached ({reason})", delay_s=RETRY_DELAY_S) from error
