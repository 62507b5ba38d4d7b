"""Where models run. `connect` gives the side that a pipeline step or a command talks to."""

from pathlib import Path

from serin.errors import UserError
from serin.platforms.ports import Platform


def connect(platform: str) -> Platform:
    """`platform` is "embedded:" and the folder the embedded platform lives in, or "kserve:" and a namespace.

    The cluster is the one this runs in, else that of the current kubeconfig; without a namespace its current one is
    meant. SERIN_GATEWAY is the URL of its gateway, where the address inside the cluster is of no use.
    """
    scheme, _, rest = platform.partition(":")
    if scheme == "embedded" and rest:
        from serin.platforms.embedded.client import Embedded

        return Embedded(Path(rest))
    if scheme == "kserve":
        from serin.platforms.kserve.client import KServe

        return KServe.connect(rest or None)
    raise UserError(f"There is no platform {platform!r}; use embedded:FOLDER or kserve:NAMESPACE.")
