"""The same pipeline as a BentoML service; its path is in SERIN_PEER_MODEL."""

import os

import bentoml
import joblib
import pandas as pd


@bentoml.service(workers=1)
class Churn:
    def __init__(self) -> None:
        self._model = joblib.load(os.environ["SERIN_PEER_MODEL"])

    @bentoml.api
    def predict(self, records: list[dict]) -> list[float]:
        return self._model.predict_proba(pd.DataFrame(records))[:, 1].tolist()
