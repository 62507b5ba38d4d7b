"""Where models run. `connect` gives the side a pipeline step or a command talks to."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from serin.errors import UserError
from serin.rollout import ModelRollout


@dataclass(frozen=True, slots=True)
class Champion:
    """The model that serves now; `model` is a local copy of its directory."""

    revision: str
    digest: str
    model: Path


class Platform(Protocol):
    def champion(self, service: str) -> Champion | None:
        """The stable model of a service, checked against its digest; None before the first release."""

    def rollouts(self) -> Sequence[ModelRollout]:
        """All rollouts, oldest first."""

    def find(self, name: str) -> ModelRollout | None: ...

    def create(self, rollout: ModelRollout) -> None: ...

    def problem(self) -> str | None:
        """Why nothing moves at the moment and what to do about it; None when all is well."""


def connect(platform: str) -> Platform:
    """`platform` is "embedded:" and the folder the embedded platform lives in."""
    scheme, _, rest = platform.partition(":")
    if scheme == "embedded" and rest:
        from serin.platforms.embedded.client import Embedded

        return Embedded(Path(rest))
    raise UserError(f"There is no platform {platform!r}; use embedded:FOLDER.")
