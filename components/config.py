"""The config file: everything that differs from one data set to another."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from serin.errors import UserError

Learner = Literal["rule", "logistic", "hist_gradient_boosting", "xgboost"]
ColumnType = Literal["string", "number", "decimal_point", "decimal_comma"]
"""`decimal_point` reads 1,200.5 as a number, `decimal_comma` 1.200,5."""


def _known_encoding(name: str) -> str:
    try:
        "".encode(name)
    except LookupError as error:
        raise ValueError(f"{name} is not a text encoding known to Python, such as utf-8 or cp1252") from error
    return name


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(_Section):
    """`source`: a path (relative to the config file) or an address; `synthetic`: name of the generator used when
    neither a file nor the network is there; `contract`: whether data that breaks the champion's data contract ends
    the run, or is accepted and gives the next contract. `types`: of columns whose type is not to be guessed from
    their values. `normalise`: text columns in which case and outer spaces do not matter. `encoding`: of a CSV file,
    by its name in Python."""

    source: str
    sha256: str | None = None
    synthetic: Literal["churn"] | None = None
    contract: Literal["check", "accept"] = "check"
    types: dict[str, ColumnType] = {}
    normalise: tuple[str, ...] = ()
    encoding: Annotated[str, AfterValidator(_known_encoding)] | None = None


class Costs(_Section):
    false_positive: Annotated[float, Field(gt=0)] = 1.0
    false_negative: Annotated[float, Field(gt=0)] = 1.0


class Split(_Section):
    """`test` is the share of held-out rows. `group`: a column whose rows stay on one side together (a customer);
    `time`: a column by which the latest rows are held out. A larger `test`, or other ids or group, moves rows that a
    champion learned from to the held-out side: its scores are then too good, and the challenger has to beat them."""

    test: Annotated[float, Field(gt=0, lt=0.9)] = 0.2
    group: str | None = None
    time: str | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.group is not None and self.time is not None:
            raise ValueError("group and time exclude each other; keep one of them")
        return self


class Training(_Section):
    learners: tuple[Learner, ...] = ("logistic", "hist_gradient_boosting", "xgboost")
    trials: Annotated[int, Field(ge=1)] = 20
    budget_s: Annotated[float, Field(gt=0)] = 10.0
    seed: int = 7


class Gate(_Section):
    """The verdict's margins. `cost_margin`: how much worse cost per decision may be, as a share of the
    champion's cost, and still not stand in the way."""

    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    cost_margin: Annotated[float, Field(ge=0)] = 0.05
    resamples: Annotated[int, Field(ge=200)] = 2000
    min_rows: Annotated[int, Field(ge=1)] = 200


class Store(_Section):
    """Where models and tables lie that a cluster is to read: `uri` is s3://bucket/prefix, gs://…, minio://… or
    pvc://claim/path. `folder`: where a claim's path is mounted on this machine."""

    uri: Annotated[str, Field(pattern=r"^(s3|gs|minio|pvc)://[^/]+")]
    folder: Path | None = None


def _as_text(value: object) -> object:
    """YAML reads `positive: 1` and `positive: Yes` as a number and a truth value; they name labels."""
    return str(value) if isinstance(value, bool | int | float) else value


class Config(_Section):
    """`positive` is compared with the values of `target` ignoring case and spaces; yes, true and 1 are the same, and
    so are no, false and 0. `protected` attributes are features too, unless `drop` names them; what `keep` names is
    one whatever it looks like. `release` is a serin plan (a profile's name, or a document as in ModelRollout
    spec.plan). `store` is needed for a cluster only."""

    service: Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=40)]
    data: Data
    target: str
    positive: Annotated[str, BeforeValidator(_as_text)]
    ids: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    protected: tuple[str, ...] = ()
    costs: Costs = Costs()
    split: Split = Split()
    training: Training = Training()
    gate: Gate = Gate()
    release: str | dict[str, Any] = "fast"
    store: Store | None = None


def load(path: Path) -> Config:
    """Read and check a config file. Raises `UserError` naming the offending key."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Config {path} cannot be read: {error.strerror}; pass CONFIG=path.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"Config {path} is not YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(document, dict):
        raise UserError(f"Config {path} must be a mapping of keys; copy pipelines/configs/telco.yaml and edit it.")
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        told = "unknown key" if first["type"] == "extra_forbidden" else first["msg"]
        raise UserError(f"Config {path}: {key}: {told}.") from error


def with_store(config: Config, environ: Mapping[str, str]) -> Config:
    """SERIN_MODEL_STORE and SERIN_MODEL_STORE_FOLDER come before the config's `store`."""
    uri, folder = environ.get("SERIN_MODEL_STORE"), environ.get("SERIN_MODEL_STORE_FOLDER")
    if not uri:
        return config
    try:
        return config.model_copy(update={"store": Store(uri=uri, folder=Path(folder) if folder else None)})
    except ValidationError as error:
        raise UserError(f"SERIN_MODEL_STORE={uri} is not a store; use s3://BUCKET/PREFIX or pvc://CLAIM.") from error
