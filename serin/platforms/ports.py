"""What commands, the pipeline and the pages ask of wherever models run."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Protocol

from serin.errors import UserError
from serin.rollout.document import ModelRollout


class NameTaken(UserError):
    """There is a rollout of that name already."""

    def __init__(self, name: str) -> None:
        super().__init__(f"A rollout named {name} exists; choose another name.")


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


@dataclass(frozen=True, slots=True)
class Which:
    """Which rollouts: of a `service`, called `name` or `name`-NUMBER, made `since` then (UTC), those that have not
    ended; of all these the `last` ones."""

    service: str | None = None
    name: str | None = None
    since: datetime | None = None
    unfinished: bool = False
    last: int | None = None

    def of(self, rollouts: Sequence[ModelRollout]) -> list[ModelRollout]:
        """`rollouts` oldest first."""
        found = [each for each in rollouts if self._fits(each)]
        return found if self.last is None else found[max(0, len(found) - self.last) :]

    def _fits(self, rollout: ModelRollout) -> bool:
        made = rollout.metadata
        number = made.name.removeprefix(f"{self.name}-")
        return (
            (self.service is None or rollout.spec.service == self.service)
            and (self.name is None or made.name == self.name or (number != made.name and number.isdecimal()))
            and (self.since is None or made.creation_timestamp >= self.since)
            and not (self.unfinished and rollout.status.phase.terminal)
        )


ALL: Final = Which()


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

    def rollouts(self, which: Which = ALL) -> Sequence[ModelRollout]:
        """Oldest first."""

    def find(self, name: str) -> ModelRollout | None: ...

    def windows(self, name: str, *, last: int | None = None) -> Sequence[dict[str, Any]]:
        """The timeline of a rollout in order, or only its end; empty where none is kept."""

    def create(self, rollout: ModelRollout) -> None:
        """Raises `NameTaken` when there is one of that name."""

    def patch_spec(self, name: str, **changes: bool) -> None:
        """Change the switches of a rollout (paused, abort, approved, promote)."""

    def problem(self) -> str | None:
        """Why nothing moves at the moment and what to do about it; None when all is well."""
