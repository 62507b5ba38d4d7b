"""The dataset directory: what preprocess hands to train and evaluate.

    rows.parquet     one row per record: all columns of the data, also those that are no features, so that a
                     champion with other features can be scored; the target as 0/1
    schema.json      `Schema`
    contract.json    the inferred data contract; travels on in the model's meta/
    profile.json     distribution of the training rows; travels on in the model's meta/

Number columns are float64 with NaN for missing, string columns are str with "" for missing.
"""

from pathlib import Path
from typing import Final, Literal

import duckdb
import pandas as pd
from pydantic import BaseModel, ConfigDict

ROWS_FILE: Final = "rows.parquet"
SCHEMA_FILE: Final = "schema.json"
CONTRACT_FILE: Final = "contract.json"
PROFILE_FILE: Final = "profile.json"


class Column(BaseModel):
    """`normalise`: case and outer spaces of a string do not matter to a model; the rows keep them."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    dtype: Literal["number", "string"]
    normalise: bool = False


class Schema(BaseModel):
    """`features` in the order of the model's inputs; `protected` may or may not be features as well."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    features: tuple[Column, ...]
    target: str
    positive: str
    negative: str
    ids: tuple[str, ...]
    protected: tuple[str, ...]


def write_rows(rows: pd.DataFrame, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with duckdb.connect() as connection:
        connection.register("dataset", rows)
        connection.table("dataset").write_parquet(str(directory / ROWS_FILE))


def read_rows(directory: Path) -> pd.DataFrame:
    with duckdb.connect() as connection:
        rows: pd.DataFrame = connection.read_parquet(str(directory / ROWS_FILE)).df()
    return rows


def write_schema(schema: Schema, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / SCHEMA_FILE).write_text(schema.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_schema(directory: Path) -> Schema:
    return Schema.model_validate_json((directory / SCHEMA_FILE).read_text(encoding="utf-8"))
