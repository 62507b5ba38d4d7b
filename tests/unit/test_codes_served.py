"""A column of codes from the table to the model server: what is text there is text here, what is not is refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from components.config import Config
from components.preprocess.core import preprocess
from components.preprocess.sources import SourceKind
from components.train.core import train
from predictor.columns import from_records
from predictor.errors import InvalidInput
from predictor.scorer import Scorer
from serin import model
from tests.unit.test_preprocess_reading import write_parquet


@pytest.fixture(scope="module", params=["csv", "parquet"])
def scorer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    directory = tmp_path_factory.mktemp("codes")
    rng = np.random.default_rng(0)
    zips = rng.choice(["00123", "123", "01234", "1234", "90210"], 1500)
    amount = pd.Series(rng.normal(100, 20, 1500).round(2))
    y = (rng.random(1500) < np.where(zips == "00123", 0.9, 0.2)).astype(int)
    rows = pd.DataFrame({"id": range(1500), "zip": zips, "amount": amount, "y": y})
    if request.param == "csv":
        rows["amount"] = amount.astype(str).where(rng.random(1500) > 0.1, "?")
        rows.to_csv(directory / "data.csv", index=False)
    else:
        write_parquet(rows, directory / "data.parquet")
    data = {"source": "x"}
    config = Config.model_validate(
        {"service": "x", "data": data, "target": "y", "positive": "1", "ids": ["id"], "training": {"trials": 1}}
    )
    sides = {"train": directory / "train", "test": directory / "test"}
    path = directory / f"data.{request.param}"
    preprocess(config, path, source_kind=SourceKind.FILE, champion=None, **sides)
    out: Path = directory / "model"
    train(config, "logistic", **sides, out=out)
    return Scorer.load(out, model.verify(out))


def test_a_code_is_answered_and_is_not_the_number_it_looks_like(scorer: Scorer) -> None:
    records = [{"zip": name, "amount": 100.0} for name in ("00123", "123", "00123 unseen")]
    code, number, unseen = scorer.score(from_records(scorer.layout, records)).tolist()
    assert code > 0.8
    assert number < 0.3
    assert unseen < 0.6


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"zip": 123, "amount": 100.0}, "Field 'zip', row 0: expected string or null, got number"),
        ({"zip": "123", "amount": "?"}, "Field 'amount', row 0: expected number or null, got string"),
        ({"zip": "123", "amount": "1,5"}, "Field 'amount', row 0: expected number or null, got string"),
    ],
)
def test_the_server_does_not_guess(scorer: Scorer, record: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        from_records(scorer.layout, [record])


def test_what_was_odd_is_missing_when_it_is_null(scorer: Scorer) -> None:
    (score,) = scorer.score(from_records(scorer.layout, [{"zip": "00123", "amount": None}]))
    assert score > 0.8
