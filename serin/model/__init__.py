"""The model directory: what training writes, storage carries and the predictor reads.

    model/model.onnx       the only model file; raw columns in, probability of the positive class out
    meta/signature.json    `Signature`
    meta/samples.json      `Samples`: held-out records with the score training recorded for each
    meta/profile.json      distribution of the training data and of the scores, for drift
    meta/card.md           the model card
    meta/digests.json      SHA-256 of every other file, by path

The model's digest is the SHA-256 of `meta/digests.json`: it names the whole directory.
"""

import hashlib
import json
import operator
import unicodedata
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from serin.errors import UserError

MODEL_FILE: Final = Path("model/model.onnx")
SIGNATURE_FILE: Final = Path("meta/signature.json")
SAMPLES_FILE: Final = Path("meta/samples.json")
PROFILE_FILE: Final = Path("meta/profile.json")
CARD_FILE: Final = Path("meta/card.md")
DIGESTS_FILE: Final = Path("meta/digests.json")

Value = float | int | bool | str | None
Record = dict[str, Value]


def normalised(text: str) -> str:
    """One spelling for texts that differ in case, outer spaces, or how Unicode composes their letters."""
    return unicodedata.normalize("NFC", text.strip().casefold())


class Feature(BaseModel):
    """One raw column. Its ONNX input is `input`, a tensor [N, 1]: float32 for a number (missing is NaN),
    string for a string (missing is the empty string). `normalise`: the string goes through `normalised` first."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    input: str
    dtype: Literal["number", "string"]
    normalise: bool = Field(default=False, exclude_if=operator.not_)  # written only where it matters


class Signature(BaseModel):
    """`threshold`: a probability at or above it decides for `positive`. `review`: lowest and highest probability
    at which the model is too unsure to decide alone; None if it always decides. The model's only output is a
    float32 tensor [N] or [N, 1] called "probability"."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: Literal[1] = 1
    learner: str
    target: str
    positive: str
    negative: str
    threshold: float
    review: tuple[float, float] | None = None
    features: tuple[Feature, ...]


class Samples(BaseModel):
    """Held-out records as a client would send them, and the score the Python model gave each."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    records: tuple[Record, ...]
    scores: tuple[float, ...]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(root: Path) -> str:
    """Write `meta/digests.json` over all other files below `root`; return the model's digest, "sha256:…"."""
    files = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
    digests = {file.as_posix(): _sha256(root / file) for file in files if file != DIGESTS_FILE}
    (root / DIGESTS_FILE).write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return digest(root)


def digest(root: Path) -> str:
    """The digest of a sealed model directory, without checking the files (see `verify`)."""
    return "sha256:" + _sha256(root / DIGESTS_FILE)


def verify(root: Path, expected: str | None = None) -> Signature:
    """Check every file against its recorded digest, and the model's digest against `expected`.

    Raises `UserError` naming the first file that differs, is missing, or was added.
    """
    try:
        recorded: dict[str, str] = json.loads((root / DIGESTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{root} is not a model directory: {DIGESTS_FILE} cannot be read ({error}).") from error
    found = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()} - {DIGESTS_FILE.as_posix()}
    for name in sorted(found ^ recorded.keys()):
        what = "is missing" if name in recorded else "was added after export"
        raise UserError(f"Model {root}: file {name} {what}; export the model again.")
    for name, sha in recorded.items():
        if _sha256(root / name) != sha:
            raise UserError(f"Model {root}: file {name} does not match its digest; export the model again.")
    if expected is not None and digest(root) != expected:
        raise UserError(f"Model {root}: digest is {digest(root)}, expected {expected}; check storageUri.")
    return signature(root)


def signature(root: Path) -> Signature:
    return Signature.model_validate_json((root / SIGNATURE_FILE).read_text(encoding="utf-8"))


def samples(root: Path) -> Samples:
    return Samples.model_validate_json((root / SAMPLES_FILE).read_text(encoding="utf-8"))
