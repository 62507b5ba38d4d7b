"""KServe's canary as a dance of patches: what an InferenceService shows, and the next patch to it. Pure functions.

In KServe's Knative mode `canaryTrafficPercent` (P here) gives P percent to the latest ready revision and the rest
to `latestRolledoutRevision`. That is safe only in a certain order, because KServe also *guesses*: a P below 100 on
a service without a new revision is taken for a rollback to the revision before, and removing P after a P of 0
gives the rejected revision everything. The order kept here:

    start      {candidate's predictor, P=0} in one patch; stable is pinned, the candidate gets a tag host
    stages     P alone; before each one stable is pinned and the candidate is the newest revision
    promote    P=100, then P removed: the same traffic, and no trap left for the next release
    way back   P=0; then {stable's predictor, P=0} and wait for that revision; then P removed: what is newest is
               good again, so no later change can bring the rejected candidate back

Every patch is computed from what is seen now, so a restart between any two of them changes nothing.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from serin.plan import Stored
from serin.platforms.kserve.service import AUTO_UPDATE, KNATIVE_MODES, PERCENT, TAG_ROUTING, Service
from serin.rollout.document import Candidate, Phase, Status
from serin.rollout.reconcile import (
    Action,
    CreateCandidate,
    Discard,
    Observation,
    Promote,
    Revision,
    RunChecks,
    SetSplit,
)

Predictor = Mapping[str, Any]
DIGEST: Final = "SERIN_MODEL_DIGEST"
"""With it in its environment serin's predictor serves no other model."""


class Predictors(Stored):
    """`spec.predictor`, without P, before the rollout (None: its first model) and with its candidate. Written to
    the rollout's status before the first patch: it is the way back. `uid` is that of the service then."""

    stable: dict[str, Any] | None
    candidate: dict[str, Any]
    uid: str | None = None


@dataclass(frozen=True, slots=True)
class Create:
    predictor: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Patch:
    """A JSON merge patch of the InferenceService, valid for the `resource_version` it was computed from."""

    document: dict[str, Any]
    resource_version: str


@dataclass(frozen=True, slots=True)
class Delete:
    resource_version: str


Change = Create | Patch | Delete


def refusal(service: Service | None, candidate: Candidate) -> str | None:
    """Why this order cannot hold for the service as it is, with the fix; None when it can."""
    if service is None:
        return None
    name = f"InferenceService {service.name}"
    if service.mode and service.mode not in KNATIVE_MODES:
        return (
            f"{name} is in {service.mode} mode, in which KServe 0.20 accepts a canary but sends it no traffic; "
            "use Knative mode."
        )
    if service.components:
        found = " and ".join(sorted(service.components))
        return f"{name} has {found}, whose revisions change independently of the predictor's; release those manually."
    if service.annotations.get(AUTO_UPDATE) == "true":
        return f"{name} has the annotation {AUTO_UPDATE}, which makes KServe ignore changes of traffic; remove it."
    if service.annotations.get(TAG_ROUTING) != "true":
        return (
            f'{name} needs the annotation {TAG_ROUTING}: "true" for checks at 0 % traffic; add it '
            "(KServe then creates one new revision) and wait until that is serving."
        )
    if service.predictor.get("minReplicas", 1) < 1:
        return f"{name} has minReplicas 0, so a candidate at 0 % traffic would have no pod; set it to 1 or more."
    if candidate.predictor is not None and candidate.predictor.get("minReplicas", 1) < 1:
        return "candidate.predictor has minReplicas 0, so at 0 % traffic it would have no pod; set it to 1 or more."
    if candidate.predictor is None and "model" not in service.predictor:
        return (
            f"{name} has no spec.predictor.model whose storageUri could be changed; "
            "give the whole predictor in candidate.predictor."
        )
    if service.percent not in (None, 100):
        return (
            f"{name} has {PERCENT} {service.percent}: another canary is in progress, or was left at 0; restore "
            "the model that should serve, wait until it is ready, and remove the field."
        )
    if service.refused is not None:
        return f"KServe does not accept {name} ({service.refused}); fix it first."
    if _holds(service.predictor, candidate_predictor(service, candidate)):
        return f"{name} already serves this candidate (including KServe's defaults); there is nothing to release."
    return None


def unrest(service: Service) -> str | None:
    """What is still under way in the service, so that a rollout must wait; None when nothing is."""
    if service.settled:
        return None
    return (
        f"waiting until InferenceService {service.name} is settled (created {service.created or 'none'}, "
        f"ready {service.ready or 'none'}, rolled out {service.rolled_out or 'none'})"
    )


def candidate_predictor(service: Service | None, candidate: Candidate) -> dict[str, Any]:
    """Stable's predictor with the candidate's model in it; what the candidate does not name stays as it is. A
    candidate that is a predictor takes its place."""
    if candidate.predictor is not None:
        replicas = service.predictor.get("minReplicas", 1) if service is not None else 1
        return {"minReplicas": replicas, **copy.deepcopy(candidate.predictor)}
    if service is None:
        predictor: dict[str, Any] = {"minReplicas": 1, "model": {"modelFormat": {"name": candidate.runtime}}}
    else:
        predictor = copy.deepcopy(dict(service.predictor))
    model = predictor["model"]
    model.pop("storage", None)
    model["storageUri"] = candidate.storage_uri
    if service is None or "runtime" in candidate.model_fields_set:
        model["runtime"] = candidate.runtime
    ours = {variable.name: variable.model_dump() for variable in candidate.env}
    if candidate.digest is not None:
        ours[DIGEST] = {"name": DIGEST, "value": candidate.digest}
    kept = [variable for variable in model.pop("env", []) if variable["name"] not in {*ours, DIGEST}]
    if kept or ours:
        model["env"] = [*kept, *ours.values()]
    return predictor


def observe(
    service: Service | None, status: Status, predictors: Predictors | None, candidate: Candidate
) -> Observation:
    """What the service shows of a rollout. `split` is the candidate's percent in the traffic rows of the status,
    0 for a first model, which shares with nobody.

    The candidate stays in sight until nothing of it is left in the service, also while the revision that restores
    stable is starting.
    """
    if status.phase is Phase.PENDING or predictors is None:
        serves = service.rolled_out if service is not None else ""
        return Observation(
            stable=Revision(serves, ready=True) if serves else None, refusal=refusal(service, candidate)
        )
    stable = Revision(status.stable_revision, ready=True) if status.stable_revision else None
    if service is None:
        gone = "the InferenceService was deleted" if stable else None
        return Observation(stable=stable, foreign_change=gone)
    if predictors.uid not in (None, service.uid):
        return Observation(stable=stable, foreign_change="the InferenceService was deleted and created again")
    asked = _holds(service.predictor, predictors.candidate)
    if asked and _promoting(status) and service.percent is None and service.settled:
        # by its own name, also when somebody's label has made one more revision of the same model meanwhile
        return Observation(stable=Revision(status.candidate_revision or service.rolled_out, ready=True))
    return Observation(
        stable=stable,
        candidate=_candidate(service, status, predictors, asked=asked),
        split=service.share(status.candidate_revision) if status.candidate_revision and stable else 0,
        foreign_change=_foreign_change(service, status, predictors, asked=asked),
    )


def _promoting(status: Status) -> bool:
    return status.phase is Phase.BAKING and status.traffic == 100


def _candidate(service: Service, status: Status, predictors: Predictors, *, asked: bool) -> Revision | None:
    """Its name is empty while the patch is made and KServe has not created the revision."""
    if status.phase is Phase.ROLLING_BACK and predictors.stable is None and not _made(service, status, asked=asked):
        return None
    if service.percent is None and service.predictor == predictors.stable and service.settled:
        return None
    new = asked and service.created != (status.stable_revision or "")
    name = status.candidate_revision or (service.created if new else "")
    latest = next((row.revision for row in service.rows if row.tag == "latest"), service.ready)
    ready = name != "" and name == service.created == service.ready == latest
    failure = service.failure if not ready and name and service.failed_revision == name else None
    return Revision(name, ready=ready, failure=failure or (service.refused if asked else None))


def _made(service: Service, status: Status, *, asked: bool) -> bool:
    """Whether a rollout that found no service made this one, for its first model, and nobody took it over: it comes
    with a P of 100, which only its promotion removes."""
    promoted = any(entry.traffic == 100 for entry in status.history)
    return asked and (service.percent == 100 or (service.percent is None and promoted))


def _foreign_change(service: Service, status: Status, predictors: Predictors, *, asked: bool) -> str | None:
    """What about the service is neither as it was nor as this rollout wants it."""
    started = bool(status.candidate_revision)
    if not asked and (started or service.predictor != predictors.stable):
        return "somebody else changed spec.predictor of the InferenceService"
    known = {status.stable_revision, status.candidate_revision}
    if started and service.created not in known:
        return f"revision {service.created} appeared, which this rollout did not ask for"
    if status.stable_revision and service.rolled_out not in known:
        return f"KServe rolled back to {service.rolled_out or 'no revision'} instead of {status.stable_revision}"
    used = {0, *(entry.traffic for entry in status.history)} if predictors.stable is not None else {100}
    if not asked and status.phase is Phase.DARK and service.percent not in (None, 0, 100):
        return f"somebody else changed the split: {PERCENT} was set to {service.percent}"
    if asked and service.percent not in used and not (service.percent is None and _promoting(status)):
        what = "removed" if service.percent is None else f"set to {service.percent}"
        return f"somebody else changed the split: {PERCENT} was {what}"
    return None


def next_change(action: Action, service: Service | None, status: Status, predictors: Predictors) -> Change | None:
    """The next change of the service towards what `action` wants; None while there is only waiting to do.

    `status` is the one that asked for the action.
    """
    if service is None:
        first = isinstance(action, CreateCandidate) and predictors.stable is None
        return Create({**predictors.candidate, PERCENT: 100}) if first else None
    asked = _holds(service.predictor, predictors.candidate)
    match action:
        case CreateCandidate():
            untouched = service.predictor == predictors.stable and service.settled
            if untouched and service.rolled_out == status.stable_revision:
                return _patch(service, predictors.candidate, 0)
        case SetSplit(percent=0):
            if asked and service.percent != 0:
                return _patch(service, service.predictor, 0)
            if status.phase is Phase.ROLLING_BACK:  # P=0 need not be enough, when others meddled
                return _retreat(service, status, predictors, asked=asked)
        case SetSplit(stable=stable, candidate=candidate, percent=percent):
            pinned = service.rolled_out == stable and service.created == service.ready == candidate
            if asked and pinned and service.percent not in (None, percent):
                return _patch(service, service.predictor, percent)
        case Promote(candidate=candidate):
            if asked and service.created == service.ready == candidate:
                return _promote(service, candidate)
        case Discard():
            return _retreat(service, status, predictors, asked=asked)
        case RunChecks():
            pass
    return None


def _promote(service: Service, candidate: str) -> Change | None:
    if service.percent == 100:
        done = service.settled and service.rolled_out == candidate
        return _patch(service, service.predictor, None) if done else None
    return _patch(service, service.predictor, 100) if service.percent is not None else None


def _retreat(service: Service, status: Status, predictors: Predictors, *, asked: bool) -> Change | None:
    """The way back, one step at a time."""
    if predictors.stable is None:
        return Delete(service.resource_version) if _made(service, status, asked=asked) else None
    if service.predictor != predictors.stable:
        return _undo(service, status, predictors.stable)
    if service.percent is None:
        return None
    if not status.candidate_revision and service.created == service.ready == status.stable_revision:
        return _patch(service, service.predictor, None)  # the candidate was never asked for: newest is stable
    if service.percent != 0:
        return _patch(service, service.predictor, 0)
    new = service.created not in ("", status.stable_revision, status.candidate_revision)
    misled = not status.candidate_revision and service.rolled_out != status.stable_revision
    ready = service.created == service.ready
    return _patch(service, service.predictor, None) if ready and (new or misled) else None


def _undo(service: Service, status: Status, stable: Predictor) -> Change | None:
    """First the traffic, then the model. A spec that KServe refused never was a revision: nothing follows it."""
    untouched = service.created == service.rolled_out == status.stable_revision
    if service.refused is not None and untouched and not status.candidate_revision:
        return _patch(service, stable, None)
    if service.percent != 0:
        return _patch(service, service.predictor, 0)
    if service.created == status.stable_revision:
        return None  # putting the model back before KServe saw it leave would be a P of 0 without a new revision
    if service.share(service.rolled_out) != 100:
        return None  # the status does not show P=0 yet
    bad = service.rolled_out == status.candidate_revision
    goes_back = service.created == service.ready == service.rolled_out and service.previous == status.stable_revision
    if bad and goes_back:
        return None  # after P=100 KServe itself goes back to the revision before, a moment after P=0
    return _patch(service, stable, 0)


def _patch(service: Service, predictor: Predictor, percent: int | None) -> Patch:
    document = merge_patch(service.predictor, predictor) | {PERCENT: percent}
    return Patch({"spec": {"predictor": document}}, service.resource_version)


def merge_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON merge patch (RFC 7386) that turns one document into the other."""
    patch: dict[str, Any] = {key: None for key in before if key not in after}
    for key, value in after.items():
        if isinstance(value, Mapping) and isinstance(before.get(key), Mapping):
            inner = merge_patch(before[key], value)
            if inner:
                patch[key] = inner
        elif key not in before or before[key] != value:
            patch[key] = value
    return patch


def _holds(whole: object, part: object) -> bool:
    """Everything in `part` is in `whole`; admission may have added defaults."""
    if isinstance(part, Mapping) and isinstance(whole, Mapping):
        return all(key in whole and _holds(whole[key], value) for key, value in part.items())
    if isinstance(part, list) and isinstance(whole, list):
        return len(part) == len(whole) and all(_holds(ours, its) for ours, its in zip(whole, part, strict=True))
    return whole == part
