"""What commands, the pipeline and the pages ask of wherever models run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from serin.errors import UserError
from serin.rollout.document import ModelRollout


@dataclass(frozen=True, slots=True)
class Champion:
    """The model that serves now. `storage_uri` is a folder on the embedded platform, a URI such as s3://… on a
    cluster; `digest` is None for a model that no rollout with a digest brought."""

    revision: str
    digest: str | None
    storage_uri: str

    @property
    def model(self) -> Path:
        """Its directory. Raises `UserError` when that is not on this machine."""
        if "://" in self.storage_uri:
            raise UserError(
                f"The model being served is at {self.storage_uri}, not on this machine; download it first."
            )
        return Path(self.storage_uri)


class Platform(Protocol):
    def __str__(self) -> str:
        """What it is and where, for people."""

    @property
    def address(self) -> str | None:
        """URL of the gateway, without a path; None while there is no gateway."""

    def host(self, service: str) -> str | None:
        """The Host header that requests to a service need at the gateway; None when they need none."""

    def champion(self, service: str) -> Champion | None:
        """The stable model of a service; None before the first release. Whoever reads its files checks them against
        its digest: that they were damaged is no reason to keep it."""

    def rollouts(self) -> Sequence[ModelRollout]:
        """All rollouts, oldest first."""

    def find(self, name: str) -> ModelRollout | None: ...

    def windows(self, name: str, *, last: int | None = None) -> Sequence[dict[str, Any]]:
        """The timeline of a rollout in order, or only its end; empty where none is kept."""

    def create(self, rollout: ModelRollout) -> None:
        """Raises `UserError` when the name is taken."""

    def patch_spec(self, name: str, **changes: bool) -> None:
        """Change the switches of a rollout (paused, abort, approved, promote)."""

    def problem(self) -> str | None:
        """Why nothing moves at the moment and what to do about it; None when all is well."""
