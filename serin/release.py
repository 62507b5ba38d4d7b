"""Ask a platform for a rollout, or find the one that was asked for already."""

import re
from collections.abc import Sequence

from serin.platforms.ports import NameTaken, Platform, Which
from serin.rollout.document import Metadata, ModelRollout, Phase, Spec


def request(platform: Platform, spec: Spec, digest: str) -> ModelRollout:
    """Create a rollout of the model `digest`, or re-attach to the one under way, or to the one that made it serve.

    A model that was rolled back, failed, or replaced since may be tried again: a new rollout with a numbered name.
    """
    prefix = f"{spec.service}-{digest.removeprefix('sha256:')[:8]}"
    while True:
        champion = platform.champion(spec.service)
        serving = champion is not None and champion.digest == digest
        name, existing = attach(platform.rollouts(Which(name=prefix)), prefix, serving=serving)
        if existing is not None:
            return existing
        try:
            return create(platform, spec, name)
        except NameTaken:  # somebody else asked for the same at this very moment: theirs is there now
            if platform.find(name) is None:
                raise


def create(platform: Platform, spec: Spec, name: str) -> ModelRollout:
    rollout = ModelRollout(metadata=Metadata(name=name), spec=spec)
    platform.create(rollout)
    return rollout


def attach(rollouts: Sequence[ModelRollout], prefix: str, *, serving: bool) -> tuple[str, ModelRollout | None]:
    """The name for the next rollout called `prefix`, or the latest one if it still stands.

    `serving`: the model is the one that serves now. `rollouts` oldest first.
    """
    named = re.compile(rf"{re.escape(prefix)}(?:-(\d+))?")
    tried = [(int(found[1] or 1), each) for each in rollouts if (found := named.fullmatch(each.metadata.name))]
    if not tried:
        return prefix, None
    _, latest = tried[-1]
    if not latest.status.phase.terminal or (latest.status.phase is Phase.PROMOTED and serving):
        return latest.metadata.name, latest
    return f"{prefix}-{max(number for number, _ in tried) + 1}", None
