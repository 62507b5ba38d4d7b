"""Which platform a command acts on: said by options before or after the command's name, connected to when needed."""

import functools
from collections.abc import Callable
from typing import Any, Final

import click

from serin.errors import TryAgain, UserError
from serin.hint import typed
from serin.platforms.embedded.client import Embedded
from serin.platforms.ports import Platform, Which
from serin.rollout.document import ModelRollout

KNOWN: Final = 10
OFFERED: Final = 100
"""The latest rollouts that a message, and a shell's completion, names."""


def remembered(*names: str, **attributes: Any) -> click.Option:  # noqa: ANN401 - as click takes them
    """An option of a group and of its commands: what is said last counts. `said` gives its value."""

    def remember(context: click.Context, option: click.Parameter, value: object) -> None:
        if value is not None:
            context.meta[f"serin.{option.name}"] = value

    return click.Option(names, expose_value=False, callback=remember, **attributes)


def said(context: click.Context, name: str) -> Any | None:  # noqa: ANN401 - of whatever type the option is
    return context.meta.get(f"serin.{name}")


def pass_platform(command: Callable[..., None]) -> Callable[..., None]:
    """The platform as the command's first argument. Its group has, as the context's `obj`, what connects to it."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:  # noqa: ANN401 - the command's own
        command(connected(click.get_current_context()), *arguments, **options)

    return run


def connected(context: click.Context) -> Platform:
    connect: Callable[[click.Context], Platform] = context.obj
    return connect(context)


def rollout_named(platform: Platform, name: str | None) -> ModelRollout:
    """The rollout of that name, or the latest one."""
    if name is None:
        rollouts = platform.rollouts(Which(last=1))
        if not rollouts:
            how = (
                f"with `make run` or {typed('release')}"
                if isinstance(platform, Embedded)
                else "by applying a ModelRollout"
            )
            raise UserError(f"There is no rollout yet; start one {how}.")
        return rollouts[-1]
    found = platform.find(name)
    if found is None:
        known = ", ".join(each.metadata.name for each in platform.rollouts(Which(last=KNOWN))) or "none yet"
        raise UserError(f"There is no rollout {name}; known: {known}.")
    return found


def _names(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Of rollouts, for the shell's completion; a shell has no place for errors."""
    try:
        names = [each.metadata.name for each in connected(context).rollouts(Which(last=OFFERED))]
    except (UserError, TryAgain):
        return []
    return [name for name in names if name.startswith(incomplete)]


rollout_argument = click.argument("rollout", required=False, shell_complete=_names)
