"""What training knows of a model it made, from rows the model was not fitted on; kept as meta/training.json."""

from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

from components.config import Learner

TRAINING_FILE: Final = Path("meta/training.json")


class Record(BaseModel):
    """`log_loss`, `auc` and `cost` (per decision) are out-of-fold, on `judged_rows` of the training rows (None: all),
    as many as the time budget allowed to tune and calibrate on. `event_rate` is the share of positive training rows.
    `trials` is the number of settings tried, 0 where there is nothing to tune or no time to."""

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
    judged_rows: int | None = None
    params: dict[str, float]

    @property
    def sampled(self) -> bool:
        return self.judged_rows is not None and self.judged_rows < self.rows


def read(model: Path) -> Record:
    return Record.model_validate_json((model / TRAINING_FILE).read_text(encoding="utf-8"))
