"""From a data file to two dataset directories: rows to learn from and rows held out."""

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from components.config import Config
from components.dataset import CONTRACT_FILE, PROFILE_FILE, Column, Schema, write_rows, write_schema
from components.preprocess import checks, contract, profile
from components.preprocess.reading import read
from components.preprocess.sources import SourceKind, sha256_of
from components.preprocess.spelling import Wish
from components.preprocess.splitting import held_out
from serin.errors import UserError
from serin.model import PROFILE_FILE as MODEL_PROFILE
from serin.report import words

MODEL_CONTRACT = Path("meta") / CONTRACT_FILE


class Summary(BaseModel):
    """What became of the data. `drift` is relative to the champion's training rows, empty without a champion."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: SourceKind
    sha256: str
    rows: int
    train_rows: int
    test_rows: int
    columns: int
    features: tuple[str, ...]
    dropped: dict[str, str]
    positive: str
    negative: str
    positive_rate: float
    drift: tuple[profile.Drift, ...]
    notes: tuple[str, ...]

    def lines(self) -> tuple[str, ...]:
        """What is to be known of the data before a model of it is believed: each note, and what was left out."""
        names: dict[str, list[str]] = {}
        for name, reason in self.dropped.items():
            names.setdefault(reason, []).append(f"`{name}`")
        left_out = (f"Left out {', '.join(each)}: {reason}." for reason, each in names.items())
        return tuple(map(words.printable, (*self.notes, *left_out)))


def preprocess(
    config: Config, data: Path, *, source_kind: SourceKind, champion: Path | None, train: Path, test: Path
) -> Summary:
    """Check, split and profile the data; write the dataset directories `train` and `test`.

    `champion`: the directory of the model that serves now, whose data contract and profile the data is held against.
    Raises `UserError`, before anything is written, when the data cannot be learned from.
    """
    agreed = _agreed(champion)
    table = read(data, wishes=_wishes(config, agreed), encoding=config.data.encoding)
    rows = table.rows
    checks.check_columns(rows.columns, config)
    checks.check_normalise(rows, config)
    notes = [*table.notes, *_contract_notes(config, champion, agreed, rows)]
    target, positive, negative = checks.label(rows, config)
    features, dropped = checks.choose_features(table, config)
    notes += [f"`{name}` {table.remarks[name]}." for name in features if name in table.remarks]
    for name in features:
        if infinite := int(np.isinf(rows[name]).sum()) if rows[name].dtype == np.float64 else 0:
            raise UserError(
                f"Column {name!r} is infinite in {contract.counted(infinite)}; leave unknown numbers blank."
            )
    checks.check_leakage(rows, target, features)
    tested = held_out(rows, config)
    checks.check_groups(rows, target, config, tested, (negative, positive))
    checks.check_split(target, tested, (negative, positive))
    notes += checks.uneven(target, tested, config)
    notes += checks.notes(rows, config, features, tested)

    described = list(dict.fromkeys((*features, *config.protected)))
    schema = Schema(
        features=tuple(
            Column(name=name, dtype=_dtype(rows[name]), normalise=name in config.data.normalise) for name in features
        ),
        target=config.target,
        positive=positive,
        negative=negative,
        ids=config.ids,
        protected=config.protected,
    )
    rules = contract.infer(rows[described])
    learned = profile.profile(rows.loc[~tested, described], target[~tested])
    labelled = rows.assign(**{config.target: target})
    for directory, side in ((train, ~tested), (test, tested)):
        write_rows(labelled[side], directory)
        write_schema(schema, directory)
        (directory / CONTRACT_FILE).write_text(rules.model_dump_json(indent=1) + "\n", encoding="utf-8")
        (directory / PROFILE_FILE).write_text(learned.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return Summary(
        source=source_kind,
        sha256=sha256_of(data),
        rows=len(rows),
        train_rows=int((~tested).sum()),
        test_rows=int(tested.sum()),
        columns=len(rows.columns),
        features=features,
        dropped=dropped,
        positive=positive,
        negative=negative,
        positive_rate=float(target.mean()),
        drift=_drift(champion, rows[described], target),
        notes=tuple(notes),
    )


def _dtype(values: pd.Series) -> Literal["number", "string"]:
    return "number" if values.dtype == np.float64 else "string"


def _agreed(champion: Path | None) -> contract.Contract | None:
    """The champion's data contract; None without a champion, or if it came from outside the pipeline."""
    if champion is None or not (champion / MODEL_CONTRACT).exists():
        return None
    return contract.Contract.model_validate_json((champion / MODEL_CONTRACT).read_text(encoding="utf-8"))


def _wishes(config: Config, agreed: contract.Contract | None) -> dict[str, Wish]:
    """What is known of columns before their values are looked at. The config comes before the champion; ids, target
    and what decides the split are names, whatever they look like."""
    rules = agreed.columns if agreed else {}
    wishes = {name: Wish.TEXT if rule.dtype == "string" else Wish.AGREED for name, rule in rules.items()}
    wishes |= {name: Wish(wanted) for name, wanted in config.data.types.items()}
    names = (config.target, *config.ids, config.split.group, config.split.time)
    return wishes | {name: Wish.TEXT for name in names if name}


def _contract_notes(
    config: Config, champion: Path | None, agreed: contract.Contract | None, rows: pd.DataFrame
) -> tuple[str, ...]:
    if agreed is None:
        return () if champion is None else ("The champion has no data contract, so none was checked.",)
    findings = contract.check(agreed, rows)
    broken = "; ".join(map(str, findings.violations))
    if broken and config.data.contract == "check":
        raise UserError(
            f"The data breaks the champion's data contract: {broken}; correct the data, or set data.contract: accept "
            "in the config."
        )
    return (*findings.notes, *((f"Accepted despite the champion's data contract: {broken}.",) if broken else ()))


def _drift(champion: Path | None, rows: pd.DataFrame, target: pd.Series) -> tuple[profile.Drift, ...]:
    if champion is None or not (champion / MODEL_PROFILE).exists():
        return ()
    return profile.drift(profile.read(champion / MODEL_PROFILE), rows, target)
