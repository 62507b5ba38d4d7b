"""Small dataset directories as preprocess writes them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from components import dataset
from components.config import Config


def config(**sections: object) -> Config:
    """Two settings per learner, few resamples."""
    base: dict[str, object] = {
        "service": "orders",
        "data": {"source": "orders.csv"},
        "target": "returned",
        "positive": "yes",
        "ids": ["order"],
        "protected": ["region"],
        "costs": {"false_positive": 1, "false_negative": 4},
        "training": {"trials": 2, "budget_s": 60},
        "gate": {"resamples": 400},
    }
    return Config.model_validate(base | sections)


def orders(rows: int = 600, seed: int = 0) -> pd.DataFrame:
    """Missing numbers and strings, a header that is not ASCII, and one that looks like a model's input."""
    rng = np.random.default_rng(seed)
    price = np.round(rng.lognormal(3, 1, rows), 2)
    size = rng.choice(["S", "M", "L", ""], rows, p=[0.3, 0.4, 0.2, 0.1])
    delay = rng.integers(0, 30, rows).astype(float)
    margin = 0.15 * (delay - 15) + 1.5 * (size == "L") - 1.5 * (size == "S") + 0.5 * (np.log(price) - 3) - 0.5
    returned = rng.random(rows) < 1 / (1 + np.exp(-margin))
    delay[rng.random(rows) < 0.1] = np.nan
    return pd.DataFrame(
        {
            "order": [f"o{seed}-{i}" for i in range(rows)],
            "Preis in €": price,
            "f0": delay,
            "size": size.astype(object),
            "region": rng.choice(["north", "south"], rows).astype(object),
            "returned": returned.astype(np.int64),
        }
    )


def write(rows: pd.DataFrame, directory: Path) -> Path:
    """Every column but the id and the target is a feature; "region" is protected."""
    names = [name for name in rows.columns if name not in ("order", "returned")]
    columns = [dataset.Column(name=n, dtype="number" if rows[n].dtype == np.float64 else "string") for n in names]
    schema = dataset.Schema(
        features=tuple(columns),
        target="returned",
        positive="yes",
        negative="no",
        ids=("order",),
        protected=("region",),
    )
    dataset.write_rows(rows, directory)
    dataset.write_schema(schema, directory)
    (directory / dataset.CONTRACT_FILE).write_text("{}", encoding="utf-8")
    (directory / dataset.PROFILE_FILE).write_text(json.dumps({"rows": len(rows)}), encoding="utf-8")
    return directory
