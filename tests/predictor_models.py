"""A small model directory, made by hand so that every score can be worked out on paper."""

import json
import math
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from serin.model import Feature, Record, Samples, Signature, seal
from serin.model.explanation import EXPLANATION_FILE, Category, Explanation, Linear, Number

SIGNATURE = Signature(
    learner="rule",
    target="Churn",
    positive="Yes",
    negative="No",
    threshold=0.5,
    features=(
        Feature(name="tenure", input="tenure", dtype="number"),
        Feature(name="Montant dû", input="amount", dtype="number"),
        Feature(name="Contract", input="Contract", dtype="string"),
    ),
)


def score(record: Record) -> float:
    """What the model answers: log-odds 2 - 0.1 tenure + 0.01 amount - 1 with a one-year contract; a missing
    number counts as 0."""
    tenure, amount = record.get("tenure") or 0, record.get("Montant dû") or 0
    log_odds = 2 - 0.1 * float(tenure) + 0.01 * float(amount) - (record.get("Contract") == "One year")
    return 1 / (1 + math.exp(-log_odds))


RECORDS: tuple[Record, ...] = (
    {"tenure": 5, "Montant dû": 20.5, "Contract": "Month-to-month"},
    {"tenure": 40, "Montant dû": None, "Contract": "One year"},
    {"tenure": None, "Contract": None},
)


EXPLANATION = Explanation(
    slope=1.0,
    intercept=0.0,
    columns=(
        Number(feature="tenure", fill=0.0),
        Number(feature="Montant dû", fill=0.0),
        Category(feature="Contract", value="One year"),
    ),
    learner=Linear(base=2 - 0.1 * 30 + 0.01 * 60 - 0.25, weights=(-0.1, 0.01, -1), centers=(30, 60, 0.25)),
)


def onnx_model() -> onnx.ModelProto:
    def weight(name: str, value: float) -> onnx.TensorProto:
        return helper.make_tensor(name, TensorProto.FLOAT, [1], [value])

    nodes = [
        helper.make_node("LabelEncoder", ["Contract"], ["contract"], domain="ai.onnx.ml",
                         keys_strings=["One year"], values_floats=[-1.0], default_float=0.0),
    ]  # fmt: skip
    for name in ("tenure", "amount"):
        nodes += [
            helper.make_node("IsNaN", [name], [f"{name}_missing"]),
            helper.make_node("Where", [f"{name}_missing", "zero", name], [f"{name}_filled"]),
            helper.make_node("Mul", [f"{name}_filled", f"{name}_weight"], [f"{name}_part"]),
        ]
    nodes += [
        helper.make_node("Sum", ["tenure_part", "amount_part", "contract", "intercept"], ["log_odds"]),
        helper.make_node("Sigmoid", ["log_odds"], ["probability"]),
    ]
    column = [None, 1]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("tenure", TensorProto.FLOAT, column),
            helper.make_tensor_value_info("amount", TensorProto.FLOAT, column),
            helper.make_tensor_value_info("Contract", TensorProto.STRING, column),
        ],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, column)],
        [weight("zero", 0.0), weight("tenure_weight", -0.1), weight("amount_weight", 0.01), weight("intercept", 2.0)],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def write(
    root: Path,
    *,
    model: onnx.ModelProto | None = None,
    scores: tuple[float, ...] | None = None,
    explanation: Explanation = EXPLANATION,
) -> str:
    """Write and seal a model directory; returns its digest."""
    (root / "model").mkdir(parents=True)
    (root / "meta").mkdir()
    onnx.save(model or onnx_model(), root / "model" / "model.onnx")
    samples = Samples(records=RECORDS, scores=scores or tuple(map(score, RECORDS)))
    (root / "meta" / "signature.json").write_text(SIGNATURE.model_dump_json(), encoding="utf-8")
    (root / "meta" / "samples.json").write_text(samples.model_dump_json(), encoding="utf-8")
    (root / "meta" / "profile.json").write_text(json.dumps({}), encoding="utf-8")
    (root / "meta" / "card.md").write_text("# Tiny\n", encoding="utf-8")
    (root / EXPLANATION_FILE).write_text(explanation.model_dump_json(), encoding="utf-8")
    return seal(root)
