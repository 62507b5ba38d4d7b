"""What training knows of a model it made, from rows the model was not fitted on; kept as meta/training.json."""

from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

from components.config import Learner

TRAINING_FILE: Final = Path("meta/training.json")


class Record(BaseModel):
    """`log_loss`, `auc` and `cost` (per decision) are out-of-fold, on training rows. `event_rate` is the share of
    positive training rows. `trials` is the number of settings tried, 0 where there is nothing to tune."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    learner: Learner
    rows: int
    event_rate: float
    log_loss: float
    auc: float
    cost: float
    threshold: float
    calibrated: bool
    trials: int
    params: dict[str, float]


def read(model: Path) -> Record:
    return Record.model_validate_json((model / TRAINING_FILE).read_text(encoding="utf-8"))
