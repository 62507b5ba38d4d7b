"""An S3 server for the tests here."""

from collections.abc import Iterator

import pytest
from s3_server import s3_server


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """Address of an S3 server with one bucket, "bucket"."""
    with s3_server("bucket") as address:
        yield address


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": server,
    }.items():
        monkeypatch.setenv(name, value)
