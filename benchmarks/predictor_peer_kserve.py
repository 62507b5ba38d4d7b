"""Two stock KServe servers: `model`, its sklearn server's load and predict as documented (joblib pipeline,
probabilities), and `constant`, which answers without a model: the ceiling of the framework.

    python -m benchmarks.predictor_peer_kserve PORT (constant | path of model.joblib)
"""

import logging
import sys
import warnings
from pathlib import Path

import joblib
from kserve import InferRequest, InferResponse, Model, ModelServer
from kserve.logging import configure_logging
from kserve.utils.utils import get_predict_input, get_predict_response


class SKLearnModel(Model):
    def __init__(self, path: Path) -> None:
        super().__init__("churn")
        self._model = joblib.load(path)
        self.ready = True

    def predict(self, payload: dict | InferRequest, headers: dict[str, str] | None = None) -> dict | InferResponse:
        return get_predict_response(payload, self._model.predict_proba(get_predict_input(payload)), self.name)


class Constant(Model):
    def __init__(self) -> None:
        super().__init__("churn")
        self.ready = True

    def predict(self, payload: dict, headers: dict[str, str] | None = None) -> dict:
        return {"predictions": [{"probability": 0.5, "decision": "Yes"} for _ in payload["instances"]]}


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="ORJSONResponse is deprecated")
    configure_logging()
    for name in ("kserve.trace", "uvicorn.access"):  # a line per request costs a quarter of the speed
        logging.getLogger(name).setLevel(logging.WARNING)
    model = Constant() if sys.argv[2] == "constant" else SKLearnModel(Path(sys.argv[2]))
    ModelServer(http_port=int(sys.argv[1]), enable_grpc=False, enable_latency_logging=False).start([model])
