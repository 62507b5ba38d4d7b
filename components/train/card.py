"""The model card: what the model is for, what it was made of, how good it is, and what to watch."""

from components.config import Config
from components.dataset import Schema
from components.train.features import CATEGORIES
from components.train.record import Record


def write(config: Config, schema: Schema, record: Record) -> str:
    """Markdown. The figures are out-of-fold; those on held-out rows are in the evaluation."""
    settings = ", ".join(f"{name} = {value:.4g}" for name, value in record.params.items()) or "none"
    protected = [
        f"- {name}" + ("" if name in {c.name for c in schema.features} else " (not a model input)")
        for name in schema.protected
    ]
    return "\n".join(
        [
            f"# Model card: {config.service}, {record.learner}",
            "",
            "## Intended use",
            f"Probability that `{schema.target}` is `{schema.positive}` rather than `{schema.negative}`, for records",
            f"like those in {config.data.source}. Predict `{schema.positive}` at or above {record.threshold:.4f}.",
            "Not intended for other populations; monitor the inputs for drift.",
            "",
            "## Data",
            f"{record.rows} training rows, {record.event_rate:.1%} of them `{schema.positive}`; "
            f"{len(schema.features)} inputs: {', '.join(f'`{c.name}` ({c.dtype})' for c in schema.features)}.",
            "A missing number becomes the median of its column; a missing string is its own category. Values not",
            f"seen in training count as unknown. Columns of more than {CATEGORIES} values are encoded by the event",
            "rate of each value.",
            "",
            "## Metrics, out-of-fold on the training rows",
            f"| log loss | AUC | cost per decision | calibrated | trials |\n|{'---|' * 5}",
            f"| {record.log_loss:.4f} | {record.auc:.4f} | {record.cost:.4f} | "
            f"{'sigmoid' if record.calibrated else 'not needed'} | {record.trials} |",
            "",
            f"Settings: {settings}.",
            *_budget(record),
            "",
            "## Costs",
            f"A false positive costs {config.costs.false_positive:g}, a false negative "
            f"{config.costs.false_negative:g}; the threshold minimises the out-of-fold cost.",
            "",
            "## Protected attributes",
            *(protected or ["None configured: no groups were compared."]),
            "",
        ]
    )


def _budget(record: Record) -> list[str]:
    if not record.sampled:
        return []
    return [
        f"Tuned and calibrated on {record.judged_rows} of the rows, to keep within the time budget; fitted on all."
    ]
