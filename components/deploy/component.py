"""The KFP shell of deploy."""

from kfp import dsl

from components.shell import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def deploy(
    config: str,
    platform: str,
    champion: str,
    model: dsl.Input[dsl.Model],
    rollout: dsl.Output[dsl.Artifact],
    story: dsl.Output[dsl.HTML],
) -> str:
    """Ask `platform` for a rollout of `model`, which was compared with `champion` (an address, "" for none), and
    follow it; returns its terminal phase. `story` is the rollout for
    people, `rollout` for machines."""
    import json
    from pathlib import Path

    from components.config import Config
    from components.deploy import core
    from components.shell import user_errors
    from serin.platforms import connect
    from serin.report.page import rollout_html

    with user_errors():
        settings, where, folder = Config.model_validate_json(config), connect(platform), Path(model.path)
        ended = core.deploy(
            settings,
            where,
            folder,
            core.address(settings, platform, folder, model.uri),
            compared_with=champion,
            tell=lambda line: print(line, flush=True),
        )
        windows = where.windows(ended.metadata.name)
    Path(rollout.path).write_text(json.dumps(core.timeline(ended), indent=1), encoding="utf-8")
    Path(story.path).write_text(rollout_html(ended, windows), encoding="utf-8")
    return str(ended.status.phase)
