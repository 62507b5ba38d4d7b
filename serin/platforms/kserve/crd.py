"""The CustomResourceDefinition of `ModelRollout`, made from the document's own model.

python -m serin.platforms.kserve.crd > manifests/crd/modelrollouts.yaml
"""

import sys
from typing import Any, Final

import yaml
from pydantic import BaseModel

from serin.rollout.document import Spec, Status

GROUP: Final = "serin.dev"
VERSION: Final = "v1alpha1"
PLURAL: Final = "modelrollouts"
COLUMNS: Final = (
    ("Service", "string", ".spec.service", "InferenceService to release to"),
    ("Phase", "string", ".status.phase", ""),
    ("Stage", "integer", ".status.stage", "stage of the plan, from 0; the bake follows the last one"),
    ("Traffic", "integer", ".status.traffic", "the candidate's planned traffic, in percent"),
    ("Evidence", "number", ".status.log10E", "log10 of the evidence of harm; 2 is proof at alpha 0.01"),
    ("Age", "date", ".metadata.creationTimestamp", ""),
    ("Reason", "string", ".status.reason", ""),
)
MAX_STRING: Final = 1024
MAX_ENUM: Final = 32
MAX_ITEMS: Final = 64
_FROZEN: Final = ("service", "candidate", "plan", "profile", "judge")
_STARTED: Final = "has(oldSelf.status) && has(oldSelf.status.phase) && oldSelf.status.phase != 'Pending'"
TOLD: Final = {
    "service": "Name of the InferenceService, in the same namespace.",
    "candidate": "The model to release. Fields not given keep their value in the service.",
    "candidate.storageUri": "Location of the model: s3://, gs://, pvc://, ….",
    "candidate.digest": "SHA-256 of the model directory, as recorded in training.",
    "candidate.runtime": "ServingRuntime; default: the service's current one.",
    "candidate.predictor": "Instead of storageUri: a complete spec.predictor, for a custom server.",
    "candidate.env": "Environment variables of the model container, added to the service's own.",
    "plan": "Traffic stages and their durations; alternatively name a profile.",
    "plan.stages": "Traffic in percent, increasing from stage to stage.",
    "plan.deadlineSeconds": "If there is no decision after this time, onInconclusive applies.",
    "plan.startSeconds": "How long a candidate may take to become ready.",
    "plan.onInconclusive": "At the deadline: hold waits for somebody to decide; rollback and promote act.",
    "plan.checks": "What a candidate must pass before it gets any traffic; own: without stable's requests.",
    "profile": "A predefined plan: fast, balanced (the default) or careful.",
    "judge": "What counts as harm, and how certain to be. Frozen at the start.",
    "approval": "Whether approval is required before the first traffic, or before full traffic.",
    "approved": "The approval.",
    "concurrency": "If an older rollout of the service is in progress: queue behind it, or supersede it.",
    "paused": "Keep traffic where it is; the judge keeps watching.",
    "promote": "Skip the rest of the plan, outside the judge's guarantee.",
    "abort": "Roll back: all traffic to stable.",
}
"""What `kubectl explain` shows for the spec."""
ROOT_RULES: Final = [
    {
        "rule": "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= 63",
        "message": "metadata.name: at most 63 lowercase letters, digits and '-', starting with a letter",
    },
    *(
        {
            "rule": f"!({_STARTED}) || has(self.spec.{field}) == has(oldSelf.spec.{field})"
            f" && (!has(self.spec.{field}) || self.spec.{field} == oldSelf.spec.{field})",
            "message": f"spec.{field} cannot change once the rollout has started; abort it and create a new one",
        }
        for field in _FROZEN
    ),
]
SPEC_RULES: Final = [
    {"rule": "!(has(self.plan) && has(self.profile))", "message": "give plan or profile, not both"},
]
CANDIDATE_RULES: Final = [
    {
        "rule": "has(self.storageUri) != has(self.predictor)",
        "message": "candidate: give either storageUri or predictor",
    },
]
PLAN_RULES: Final = [
    {
        "rule": "self.stages.map(s, s.traffic).isSorted()"
        " && self.stages.all(s, self.stages.exists_one(t, t.traffic == s.traffic))",
        "message": "plan.stages: traffic must increase from stage to stage",
    },
]
CONDITIONS: Final = {
    "type": "array",
    "x-kubernetes-list-type": "map",
    "x-kubernetes-list-map-keys": ["type"],
    "items": {
        "type": "object",
        "required": ["type", "status", "reason", "message", "lastTransitionTime"],
        "properties": {
            "type": {"type": "string"},
            "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "reason": {"type": "string"},
            "message": {"type": "string"},
            "lastTransitionTime": {"type": "string", "format": "date-time"},
        },
    },
}


def definition() -> dict[str, Any]:
    spec, status = _schema(Spec), _schema(Status)
    _bounded(spec)
    _without_nullable_enums(status)
    status["properties"]["phase"]["maxLength"] = MAX_ENUM
    for path, told in TOLD.items():
        field = spec
        for name in path.split("."):
            field = field["properties"][name]
        field["description"] = told
    spec["description"] = "What to release and how; plan or profile, not both."
    status["description"] = "The rollout's progress and evidence."
    spec["x-kubernetes-validations"] = SPEC_RULES
    spec["properties"]["plan"]["x-kubernetes-validations"] = PLAN_RULES
    spec["properties"]["candidate"]["x-kubernetes-validations"] = CANDIDATE_RULES
    del spec["properties"]["candidate"]["properties"]["runtime"]["default"]  # absent means: the service's own
    for metric in ("errors", "rejected"):  # the gateway counts them
        del spec["properties"]["judge"]["properties"][metric]["properties"]["source"]
    status["properties"]["conditions"] = CONDITIONS
    status["properties"]["observedGeneration"] = {"type": "integer"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": "ModelRollout",
                "listKind": "ModelRolloutList",
                "plural": PLURAL,
                "singular": "modelrollout",
                "shortNames": ["mro"],
                "categories": ["serin"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [
                        {"name": name, "type": kind, "jsonPath": path} | ({"description": told} if told else {})
                        for name, kind, path, told in COLUMNS
                    ],
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "description": "Release of one model to one InferenceService, through a canary that "
                            "promotes or rolls itself back on evidence.",
                            "required": ["spec"],
                            "properties": {
                                "apiVersion": {"type": "string"},
                                "kind": {"type": "string"},
                                "metadata": {"type": "object"},
                                "spec": spec,
                                "status": status,
                            },
                            "x-kubernetes-validations": ROOT_RULES,
                        }
                    },
                }
            ],
        },
    }


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    document = model.model_json_schema(by_alias=True)
    return _structural(document, document.get("$defs", {}))


def _bounded(node: dict[str, Any]) -> None:
    """In a spec, what is not given is left out, not null; and everything has an upper size, without which the API
    server does not accept rules that compare it."""
    node.pop("nullable", None)
    if node["type"] == "string":
        node.setdefault("maxLength", MAX_ENUM if "enum" in node else MAX_STRING)
    if node["type"] == "array":
        node.setdefault("maxItems", MAX_ITEMS)
    for inner in (*node.get("properties", {}).values(), *([node["items"]] if "items" in node else [])):
        _bounded(inner)


def _without_nullable_enums(node: dict[str, Any]) -> None:
    """The API server refuses null where there is an enum, even one that names null."""
    if "nullable" in node:
        node.pop("enum", None)
    for inner in (*node.get("properties", {}).values(), *([node["items"]] if "items" in node else [])):
        _without_nullable_enums(inner)


def _structural(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """JSON Schema as pydantic writes it to the structural schema (OpenAPI 3.0) that Kubernetes takes."""
    if "$ref" in node:
        told = {key: value for key, value in node.items() if key != "$ref"}
        node = {**definitions[node["$ref"].rsplit("/", 1)[1]], **told}
    options = [option for option in node.get("anyOf", []) if option.get("type") != "null"]
    if options:
        nullable = len(options) < len(node["anyOf"])
        rest = {key: value for key, value in node.items() if key != "anyOf"}
        return _structural({**options[0], **rest}, definitions) | ({"nullable": True} if nullable else {})
    result: dict[str, Any] = {"type": node.get("type", "string")}
    if "description" in node:
        result["description"] = " ".join(node["description"].split())
    for key in ("enum", "pattern", "maxLength", "minItems", "maxItems", "minimum", "maximum", "format", "required"):
        if key in node:
            result[key] = node[key]
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if exclusive in node:
            result[bound], result[exclusive] = node[exclusive], True
    if "const" in node:
        result["enum"] = [node["const"]]
    if node.get("default") is not None and not isinstance(node["default"], dict | list):
        result["default"] = node["default"]
    if "items" in node:
        result["items"] = _structural(node["items"], definitions)
    if "properties" in node:
        result["properties"] = {name: _structural(each, definitions) for name, each in node["properties"].items()}
    elif result["type"] == "object":
        # atomic: else the API server notes who wrote each number in it, which takes longer than all the rest
        result |= {"x-kubernetes-preserve-unknown-fields": True, "x-kubernetes-map-type": "atomic"}
    return result


class _Plain(yaml.SafeDumper):
    """Without anchors."""

    def ignore_aliases(self, data: object) -> bool:
        return True


if __name__ == "__main__":
    yaml.dump(definition(), sys.stdout, _Plain, sort_keys=False, width=118, allow_unicode=True)
