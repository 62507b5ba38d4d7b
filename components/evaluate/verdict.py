"""From the checks of a comparison to the verdict and its reason, one sentence for people."""

from collections.abc import Sequence

from components.evaluate.evaluation import Check, Difference, Verdict

Judgement = tuple[Verdict, str]


def without_evidence(missing: str) -> Judgement:
    return Verdict.HOLD, f"Evidence is missing: {missing}."


def same_model(learner: str) -> Judgement:
    return (
        Verdict.HOLD,
        f"Training reproduced the champion ({learner}) byte for byte; there is nothing to release.",
    )


def of_first_model(learner: str, log_loss: Difference, check: Check) -> Judgement:
    """Against the base rate, by log loss alone."""
    if check.passed:
        return Verdict.PROMOTE, f"First model: {learner} is better than the base rate, {_shown(log_loss)}."
    return Verdict.HOLD, f"First model: {learner} is not clearly better than the base rate, {_shown(log_loss)}."


def against_champion(learner: str, champion: str, log_loss: Difference, checks: Sequence[Check]) -> Judgement:
    """Reject if any check is broken, promote if all are passed, hold otherwise; log loss is checked first."""
    decides, *guards = checks
    if decides.broken:
        return Verdict.REJECT, f"{learner} is worse than the champion ({champion}), {_shown(log_loss)}."
    if broken := [check for check in guards if check.broken]:
        return (
            Verdict.REJECT,
            f"{learner} is worse than the champion ({champion}) on guard metrics: {_listed(broken)}.",
        )
    if not decides.passed:
        return Verdict.HOLD, f"{learner} is not clearly better than the champion ({champion}), {_shown(log_loss)}."
    better = f"{learner} is better than the champion ({champion}), {_shown(log_loss)}"
    if unproven := [check for check in guards if not check.passed]:
        return Verdict.HOLD, f"{better}, but harm is not ruled out: {_listed(unproven)}."
    return Verdict.PROMOTE, f"{better}, and passes all guards."


def _shown(d: Difference) -> str:
    return f"log loss {d.value:+.4f} (interval {d.low:+.4f} to {d.high:+.4f})"


def _listed(checks: Sequence[Check]) -> str:
    return "; ".join(f"{c.name} {c.value:+.4f} (limit {c.bound:+.4f})" for c in checks)
