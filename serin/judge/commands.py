"""The judge's commands, added to `serin` by its command line."""

from typing import Final

import click

commands: Final[list[click.Command]] = []
