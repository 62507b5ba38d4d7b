"""Ways to an API server: what kubeconfigs and pods say."""

import base64
import os
import ssl
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from serin.errors import UserError
from serin.kube import api
from serin.kube.api import Api, default_namespace
from serin.kube.connection import context, from_kubeconfig, in_pod

Write = Any


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither in a pod nor with a kubeconfig of one's own."""
    for name in ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "KUBECONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Write:
    paths: list[str] = []

    def add(user: dict[str, Any], name: str = "a", current: str | None = "a", **cluster: Any) -> Path:
        path = tmp_path / name / "config"
        path.parent.mkdir()
        document = {
            "clusters": [{"name": name, "cluster": {"server": f"https://{name}:6443/", **cluster}}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": f"of-{name}"}}],
            **({"current-context": current} if current else {}),
        }
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        paths.append(str(path))
        monkeypatch.setenv("KUBECONFIG", os.pathsep.join([*paths, "/nowhere"]))
        return path

    return add


def test_the_current_context_with_a_token(write: Write) -> None:
    write({"token": "secret"})
    found = from_kubeconfig(None)
    assert (found.host, found.token(), default_namespace()) == ("https://a:6443", "secret", "of-a")


def test_of_several_files_the_first_that_knows_counts(write: Write) -> None:
    write({"token": "1"}, name="a", current=None)
    write({"token": "2"}, name="b", current="b")
    assert from_kubeconfig(None).token() == "2"
    assert from_kubeconfig("a").token() == "1"
    assert default_namespace("a") == "of-a"


def test_files_are_looked_for_beside_the_kubeconfig_and_read_anew(write: Write) -> None:
    beside = write({"tokenFile": "token"}).parent / "token"
    beside.write_text("one\n", encoding="ascii")
    found = from_kubeconfig(None)
    assert found.token() == "one"
    beside.write_text("two\n", encoding="ascii")
    assert found.token() == "two"


def program(folder: Path, text: str) -> str:
    path = folder / "plugin"
    path.write_text(f"#!/bin/sh\necho called >> {folder}/calls\n{text}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def plugin(command: str) -> dict[str, Any]:
    version = "client.authentication.k8s.io/v1"
    env = [{"name": "WHO", "value": "me"}]
    return {"exec": {"apiVersion": version, "command": command, "args": ["x"], "env": env}}


@pytest.mark.parametrize(("expires", "calls"), [("2999-01-01T00:00:00Z", 1), ("2020-01-01T00:00:00Z", 3)])
def test_a_program_is_asked_for_the_token_when_there_is_none_that_holds(
    write: Write, tmp_path: Path, expires: str, calls: int
) -> None:
    told = f'{{\\"status\\": {{\\"token\\": \\"$WHO$1\\", \\"expirationTimestamp\\": \\"{expires}\\"}}}}'
    write(plugin(program(tmp_path, f'echo "{told}"')))
    found = from_kubeconfig(None)
    assert [found.token(), found.token()] == ["mex", "mex"]
    assert len((tmp_path / "calls").read_text(encoding="utf-8").split()) == calls


@pytest.mark.parametrize("text", ["exit 3", "echo no JSON", "echo '{}'"])
def test_a_program_that_fails_is_named(write: Write, tmp_path: Path, text: str) -> None:
    write(plugin(program(tmp_path, text)))
    with pytest.raises(UserError, match="plugin, which the kubeconfig names for credentials, failed"):
        from_kubeconfig(None)


def test_what_is_missing_is_named(write: Write, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no kubeconfig at .*set KUBECONFIG"):
        Api.connect()
    path = write({"token": "secret"}, current=None)
    with pytest.raises(UserError, match="no current context"):
        Api.connect()
    with pytest.raises(UserError, match="no context x in the kubeconfig; known: a"):
        default_namespace("x")
    path.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read"):
        context("a")


@pytest.mark.parametrize(("content", "told"), [(b"a,b\n1,2\n", "is not a kubeconfig"), (b"\xff", "cannot be read")])
def test_a_file_of_another_kind_is_no_kubeconfig(
    content: bytes, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_bytes(content)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    with pytest.raises(UserError, match=told):
        from_kubeconfig(None)


def test_a_server_is_checked_unless_the_kubeconfig_says_otherwise(write: Write, tmp_path: Path) -> None:
    write({}, name="a")
    assert from_kubeconfig("a").http.connection_pool_kw["ssl_context"].verify_mode == ssl.CERT_REQUIRED
    write({}, name="b", **{"insecure-skip-tls-verify": True, "tls-server-name": "api"})
    found = from_kubeconfig("b").http.connection_pool_kw
    assert found["ssl_context"].verify_mode == ssl.CERT_NONE
    assert found["server_hostname"] == "api"
    write({}, name="c", **{"certificate-authority-data": base64.b64encode(b"not a certificate").decode()})
    write({"client-certificate": "gone.pem", "client-key": "gone.pem"}, name="d")
    for name in ("c", "d"):
        with pytest.raises(UserError, match=f"certificates of cluster {name} in the kubeconfig cannot be used"):
            from_kubeconfig(name)


def test_in_a_pod_its_own_token_is_used_and_read_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    certificates = Path(str(ssl.get_default_verify_paths().cafile or "")).read_text(encoding="utf-8")
    (tmp_path / "ca.crt").write_text(
        certificates.split("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n"
    )
    (tmp_path / "token").write_text("one\n")
    assert in_pod(tmp_path) is None
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    found = in_pod(tmp_path)
    assert found is not None
    assert (found.host, found.token()) == ("https://[fd00::1]:443", "one")
    (tmp_path / "token").write_text("two\n")
    assert found.token() == "two"
    monkeypatch.setattr(api, "POD_ACCOUNT", tmp_path)
    assert Api.connect()._connection.host == found.host
    (tmp_path / "namespace").write_text("serving\n")
    assert default_namespace() == "serving"
    with pytest.raises(UserError, match="kubeconfig"):
        Api.connect("minikube")
