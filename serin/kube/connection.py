"""How to reach an API server: from inside a pod, or as a kubeconfig says.

The official client can do this too; importing it takes seconds and 70 MB of memory.
"""

import base64
import json
import os
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import urllib3
import yaml

from serin.errors import UserError

POD_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
CONNECTIONS: Final = 32
EXEC_TIMEOUT_S: Final = 60
_EARLY: Final = timedelta(seconds=60)
"""A token is asked for again this long before it expires."""


@dataclass(frozen=True, slots=True)
class Connection:
    """`token` gives the bearer token to send now, None when the connection itself says who we are."""

    host: str
    http: urllib3.PoolManager
    token: Callable[[], str | None]


def in_pod(account: Path) -> Connection | None:
    """With the token in the directory `account`; None where this does not run in a pod."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT")
    if not host or not port or not (account / "token").exists():
        return None
    address = f"[{host}]" if ":" in host else host
    context = _tls((account / "ca.crt").read_text(encoding="ascii"))
    # read anew each time: the kubelet replaces it before it expires
    return Connection(f"https://{address}:{port}", _pool(context), lambda: _text(account / "token"))


def from_kubeconfig(name: str | None) -> Connection:
    """As the kubeconfig says, in its current context or that of the name. Raises `UserError` when it cannot."""
    chosen = context(name)
    cluster, user = _entry("clusters", chosen["cluster"]), _entry("users", chosen.get("user", ""))
    credential = _Credential(user["exec"]) if "exec" in user else None
    told = credential.status() if credential is not None else {}
    try:
        tls = _tls(_data(cluster, "certificate-authority"), insecure=cluster.get("insecure-skip-tls-verify", False))
        certificate = told.get("clientCertificateData") or _data(user, "client-certificate")
        key = told.get("clientKeyData") or _data(user, "client-key")
        if certificate and key:
            _present(tls, certificate, key)
    except (OSError, ValueError) as error:  # ssl's errors are of the first kind
        raise UserError(
            f"The certificates of cluster {chosen['cluster']} in the kubeconfig cannot be used: {error}"
        ) from error
    options = {"server_hostname": cluster["tls-server-name"]} if "tls-server-name" in cluster else {}
    pool = _pool(tls, cluster.get("proxy-url"), **options)

    def token() -> str | None:
        if credential is not None:
            return credential.status().get("token")
        return _text(Path(user["tokenFile"])) if "tokenFile" in user else user.get("token")

    return Connection(cluster["server"].rstrip("/"), pool, token)


def context(name: str | None = None) -> dict[str, Any]:
    """The context of that name in the kubeconfig, by default the current one. Raises `UserError` without one."""
    wanted = name or next((file["current-context"] for file in _files() if file.get("current-context")), None)
    if wanted is None:
        raise UserError("No cluster is configured: the kubeconfig has no current context; set KUBECONFIG.")
    return _entry("contexts", wanted)


def _files() -> list[dict[str, Any]]:
    """The kubeconfig's files, the most important first, with absolute paths in them."""
    paths = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube/config")
    found = []
    for path in filter(Path.is_file, map(Path, filter(None, paths.split(os.pathsep)))):
        try:
            document = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            why = " ".join(str(error).split())
            raise UserError(f"The kubeconfig {path} cannot be read ({why}); fix it or set KUBECONFIG.") from error
        if not isinstance(document, dict):
            raise UserError(f"{path} is not a kubeconfig; fix it or set KUBECONFIG.")
        for kind, part in (("clusters", "cluster"), ("users", "user")):
            for entry in document.get(kind) or []:
                for field in ("certificate-authority", "client-certificate", "client-key", "tokenFile"):
                    if field in (entry.get(part) or {}):
                        entry[part][field] = str(path.parent / entry[part][field])
        found.append(document)
    if not found:
        raise UserError(f"No cluster is configured: there is no kubeconfig at {paths}; set KUBECONFIG.")
    return found


def _entry(kind: str, name: str) -> dict[str, Any]:
    """What the first file that knows the name says about it."""
    if kind == "users" and not name:
        return {}
    entries = [each for file in _files() for each in file.get(kind) or []]
    for each in entries:
        if each["name"] == name:
            return each[kind.removesuffix("s")] or {}
    known = ", ".join(each["name"] for each in entries) or "none"
    raise UserError(f"There is no {kind.removesuffix('s')} {name} in the kubeconfig; known: {known}.")


def _data(entry: Mapping[str, Any], field: str) -> str | None:
    """PEM that stands in the kubeconfig or in a file it names."""
    if f"{field}-data" in entry:
        return base64.b64decode(entry[f"{field}-data"]).decode("ascii")
    return Path(entry[field]).read_text(encoding="ascii") if field in entry else None


def _text(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()


def _tls(authority: str | None, *, insecure: bool = False) -> ssl.SSLContext:
    # as strict as kubectl, not as Python is from 3.13 on: the certificates of many a cluster lack a field or two
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if insecure:
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    elif authority is not None:
        tls.load_verify_locations(cadata=authority)
    else:
        tls.load_default_certs()
    return tls


def _present(tls: ssl.SSLContext, certificate: str, key: str) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:  # Python loads keys from files only; 0600
        file.write(f"{certificate}\n{key}\n")
        file.flush()
        tls.load_cert_chain(file.name)


def _pool(tls: ssl.SSLContext, proxy: str | None = None, **options: Any) -> urllib3.PoolManager:  # noqa: ANN401
    options |= {"ssl_context": tls, "maxsize": CONNECTIONS}
    return urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)


class _Credential:
    """Who we are, told by a program (a "client-go credential plugin"), asked again when that expires."""

    def __init__(self, program: Mapping[str, Any]) -> None:
        self._program = program
        self._status: dict[str, Any] = {}
        self._until: datetime | None = None

    def status(self) -> dict[str, Any]:
        if not self._status or (self._until is not None and datetime.now(UTC) > self._until):
            self._status = self._ask()
            expires = self._status.get("expirationTimestamp")
            self._until = datetime.fromisoformat(expires) - _EARLY if expires else None
        return self._status

    def _ask(self) -> dict[str, Any]:
        program = self._program
        command = [program["command"], *(program.get("args") or [])]
        variables = {each["name"]: each["value"] for each in program.get("env") or []}
        asked = {"apiVersion": program["apiVersion"], "kind": "ExecCredential", "spec": {"interactive": False}}
        environment = os.environ | variables | {"KUBERNETES_EXEC_INFO": json.dumps(asked)}
        try:
            answer = subprocess.run(
                command, env=environment, stdout=subprocess.PIPE, check=True, timeout=EXEC_TIMEOUT_S
            ).stdout
            status: dict[str, Any] = json.loads(answer)["status"]
        except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
            raise UserError(f"{command[0]}, which the kubeconfig names for credentials, failed: {error!r}") from error
        return status
