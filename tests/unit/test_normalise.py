"""Values that differ in case or outer spaces only: said, and made one on request, in training and serving."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from components import dataset
from components.config import Config
from components.evaluate.core import evaluate
from components.preprocess.core import Summary, preprocess
from components.preprocess.sources import SourceKind
from components.train.core import train
from predictor.columns import from_records
from predictor.scorer import Scorer, warm_up
from serin import model
from serin.errors import UserError

CITIES = ("Berlin", "berlin", "BERLIN ", "Kyoto", "kyoto", "Zu\u0308rich", "z\u00fcrich", "Reno")


def config(**data: Any) -> Config:
    document = {"service": "x", "data": {"source": "x.csv", **data}, "target": "y", "positive": "1", "ids": ["id"]}
    return Config.model_validate({**document, "gate": {"resamples": 400}})


def cities(rows: int = 1500) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    city = rng.choice(CITIES, rows)
    rate = np.where([model.normalised(name) == "berlin" for name in city], 0.8, 0.3)
    y = (rng.random(rows) < rate).astype(int)
    return pd.DataFrame({"id": range(rows), "city": city, "x": rng.normal(size=rows), "y": y})


def prepared(directory: Path, settings: Config) -> Summary:
    directory.mkdir(exist_ok=True)
    cities().to_csv(directory / "data.csv", index=False)
    sides = {"train": directory / "train", "test": directory / "test"}
    return preprocess(settings, directory / "data.csv", source_kind=SourceKind.FILE, champion=None, **sides)


def test_near_copies_are_said(tmp_path: Path) -> None:
    (note,) = [note for note in prepared(tmp_path, config()).notes if "`city`" in note]
    assert note.startswith("`city` has values that differ only in case or outer spaces, such as `")
    assert note.endswith("the model treats them as different. data.normalise: [city] merges them.")
    assert not any("`city`" in note for note in prepared(tmp_path, config(normalise=["city"])).notes)


@pytest.mark.parametrize("learner", ["rule", "logistic"])
def test_they_are_one_to_model_and_server(tmp_path: Path, learner: Any) -> None:
    settings = config(normalise=["city"])
    prepared(tmp_path, settings)
    sides = {"train": tmp_path / "train", "test": tmp_path / "test"}
    train(settings, learner, **sides, out=tmp_path / "model")
    assert set(dataset.read_rows(tmp_path / "test")["city"]) == set(CITIES)

    signature = model.verify(tmp_path / "model")
    features = json.loads((tmp_path / "model" / model.SIGNATURE_FILE).read_text())["features"]
    assert [each.get("normalise") for each in features] == [True, None]
    scorer = Scorer.load(tmp_path / "model", signature)
    warm_up(scorer, None, model.samples(tmp_path / "model"))
    same = [("Berlin", " berlin", "BeRLIN\t"), ("Zu\u0308rich", "Z\u00dcRICH "), ("nowhere", "Elsewhere"), ("", " ")]
    scores = []
    for names in same:
        found = scorer.score(from_records(scorer.layout, [{"city": name, "x": 0.5} for name in names]))
        assert len(set(found.tolist())) == 1
        scores.append(found[0])
    assert scores[0] > max(scores[1:]) + 0.2


def test_a_champion_that_knows_the_old_spellings_is_scored_on_them(tmp_path: Path) -> None:
    before, after = config(), config(normalise=["city"])
    for name, settings in (("before", before), ("after", after)):
        prepared(tmp_path / name, settings)
        sides = {"train": tmp_path / name / "train", "test": tmp_path / name / "test"}
        train(settings, "logistic", **sides, out=tmp_path / name / "model")
    champion = tmp_path / "before" / "model"
    alone = evaluate(before, [champion], None, tmp_path / "before" / "test")
    compared = evaluate(after, [tmp_path / "after" / "model"], champion, tmp_path / "after" / "test")
    assert alone.challenger
    assert compared.champion
    assert compared.champion.metrics == alone.challenger.metrics


def test_numbers_have_no_case(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.normalise: 'x' holds numbers"):
        prepared(tmp_path, config(normalise=["x"]))
    with pytest.raises(UserError, match=r"data.normalise: the data has no column 'town'"):
        prepared(tmp_path, config(normalise=["town"]))
