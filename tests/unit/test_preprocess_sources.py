import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from components.config import Config
from components.preprocess import sources
from components.preprocess.sources import SourceKind, fetch, resolve
from serin.errors import TryAgain, UserError

CONTENT = b"a,b\n1,2\n" * 20_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
CLOSED = "http://127.0.0.1:9/data.csv"
"""Port 9 (discard): nothing listens there, which is what being offline looks like."""


class Handler(BaseHTTPRequestHandler):
    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        status = {"/gone.csv": 404, "/busy.csv": 503}.get(self.path, 200)
        self.send_response(status)
        self.send_header("Content-Length", str(len(CONTENT) + (7 if self.path == "/cut.csv" else 0)))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """A web server's address and the paths it was asked for."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Recording", (Handler,), {"requests": asked}))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def config(source: str, **data: str | None) -> Config:
    return Config.model_validate({"service": "s", "data": {"source": source, **data}, "target": "b", "positive": "2"})


def test_the_file_the_user_points_to_comes_first(tmp_path: Path) -> None:
    chosen = tmp_path / "my file.csv"
    chosen.write_bytes(CONTENT)
    source = resolve(
        config(CLOSED, sha256="0" * 64),
        config_path=tmp_path / "c.yaml",
        cache=tmp_path,
        environ={"SERIN_DATA": str(chosen)},
    )
    assert (source.path, source.kind, source.sha256, source.bytes) == (chosen, SourceKind.FILE, SHA256, len(CONTENT))


def test_a_path_is_relative_to_the_config_file(tmp_path: Path) -> None:
    (tmp_path / "with space").mkdir()
    data = tmp_path / "with space" / "data.csv"
    data.write_bytes(CONTENT)
    config_path = tmp_path / "configs" / "c.yaml"
    for source in ("../with space/data.csv", str(data)):
        found = resolve(config(source, sha256=SHA256), config_path=config_path, cache=tmp_path, environ={})
        assert found.path.resolve() == data
        assert found.kind is SourceKind.FILE
    with pytest.raises(UserError, match=rf"SHA-256 {SHA256}, expected {'0' * 64}"):
        resolve(config(str(data), sha256="0" * 64), config_path=config_path, cache=tmp_path, environ={})


def test_the_path_found_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data.csv").write_bytes(CONTENT)
    here = {"config_path": Path("c.yaml"), "cache": Path("cache")}
    assert resolve(config("data.csv"), **here, environ={}).path == tmp_path / "data.csv"
    assert resolve(config("x.csv"), **here, environ={"SERIN_DATA": "data.csv"}).path == tmp_path / "data.csv"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for environ, source, name in (
        ({"SERIN_DATA": "nowhere.csv"}, CLOSED, "SERIN_DATA"),
        ({}, "no.csv", "data.source"),
    ):
        with pytest.raises(UserError, match=f"{name}: there is no file .*; give the path"):
            resolve(
                config(source, synthetic="churn"), config_path=tmp_path / "c.yaml", cache=tmp_path, environ=environ
            )


def test_a_download_is_checked_and_made_once(
    tmp_path: Path, web: tuple[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    address, asked = web
    cache = tmp_path / "new" / "cache"
    settings = config(f"{address}/my%20data.csv", sha256=SHA256.upper())
    for _ in range(2):
        source = resolve(settings, config_path=tmp_path / "c.yaml", cache=cache, environ={})
        assert (source.kind, source.sha256) == (SourceKind.DOWNLOAD, SHA256)
        assert source.path.read_bytes() == CONTENT
        assert [path.name for path in cache.iterdir()] == [f"{SHA256[:16]}-my data.csv"]
    assert asked == ["/my%20data.csv"]
    assert f"Downloaded {len(CONTENT):,} bytes" in capsys.readouterr().err
    source.path.write_bytes(b"spoiled")
    assert resolve(settings, config_path=tmp_path, cache=cache, environ={}).sha256 == SHA256
    assert len(asked) == 2


def test_a_download_without_checksum_is_made_again_and_tells_the_sum(
    tmp_path: Path, web: tuple[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    address, asked = web
    for _ in range(2):
        assert fetch(f"{address}/data.csv", None, tmp_path).read_bytes() == CONTENT
    assert len(asked) == 2
    assert f"set data.sha256: {SHA256}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "sha256", "error", "message"),
    [
        ("/data.csv", "0" * 64, UserError, f"SHA-256 {SHA256}, expected {'0' * 64}"),
        ("/gone.csv", SHA256, UserError, "answers 404"),
        ("/busy.csv", SHA256, TryAgain, "answers 503"),
        ("/cut.csv", SHA256, TryAgain, f"was interrupted after {len(CONTENT)} of {len(CONTENT) + 7} bytes"),
    ],
)
def test_a_failed_download_leaves_nothing(
    tmp_path: Path, web: tuple[str, list[str]], path: str, sha256: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fetch(web[0] + path, sha256, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_offline_with_a_generator_says_so_loudly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sums = set()
    for _ in range(2):
        source = resolve(
            config(CLOSED, synthetic="churn"), config_path=tmp_path, cache=tmp_path / "cache", environ={}
        )
        assert source.kind is SourceKind.SYNTHETIC
        sums.add(source.sha256)
    assert len(sums) == 1
    assert "SYNTHETIC DATA" in capsys.readouterr().err
    assert source.path.read_text().startswith("customerID,gender,SeniorCitizen,")


def test_offline_without_a_generator_is_worth_another_try(tmp_path: Path) -> None:
    with pytest.raises(TryAgain, match=f"{CLOSED} cannot be downloaded"):
        resolve(config(CLOSED), config_path=tmp_path, cache=tmp_path, environ={})


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://h/x"])
def test_other_addresses_are_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(UserError, match="is not supported"):
        resolve(config(address, synthetic="churn"), config_path=tmp_path, cache=tmp_path, environ={})


def test_a_cache_that_cannot_be_written(tmp_path: Path, web: tuple[str, list[str]]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        fetch(f"{web[0]}/data.csv", None, tmp_path / "file")


def test_fetch_checks_a_local_file(tmp_path: Path) -> None:
    path = tmp_path / "a b.csv"
    path.write_bytes(CONTENT)
    assert fetch(str(path), SHA256, tmp_path) == path
    with pytest.raises(UserError, match="expected"):
        fetch(str(path), "1" * 64, tmp_path)


def test_progress_bar_on_a_terminal(
    tmp_path: Path, web: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sources.sys.stderr, "isatty", lambda: True, raising=False)
    fetch(f"{web[0]}/data.csv", SHA256, tmp_path)
    assert "Downloading data" in capsys.readouterr().err
