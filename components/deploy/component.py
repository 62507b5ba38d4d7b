"""The KFP shell of deploy."""

from kfp import dsl

from components.shell import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def deploy(config: str, platform: str, model: dsl.Input[dsl.Model], rollout: dsl.Output[dsl.Artifact]) -> str:
    """Ask `platform` for a rollout of `model` and follow it; returns its terminal phase."""
    import json
    from pathlib import Path

    from components.config import Config
    from components.deploy import core
    from components.shell import user_errors
    from serin.platforms import connect

    with user_errors():
        ended = core.deploy(
            Config.model_validate_json(config),
            connect(platform),
            Path(model.path),
            tell=lambda line: print(line, flush=True),
        )
    Path(rollout.path).write_text(json.dumps(core.timeline(ended), indent=1), encoding="utf-8")
    return str(ended.status.phase)
