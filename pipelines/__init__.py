"""The graphs and how they run."""

from pathlib import Path
from typing import Final

COMPILED: Final = Path(__file__).parent / "compiled" / "train-and-release.yaml"
"""The pipeline as the YAML that runs everywhere."""
