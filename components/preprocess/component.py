"""The pipeline step that reads, checks and splits the data."""

from kfp import dsl

from components.shell import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def preprocess(
    config: str,
    data: str,
    data_source: str,
    data_sha256: str,
    champion: str,
    champion_digest: str,
    train_data: dsl.Output[dsl.Dataset],
    test_data: dsl.Output[dsl.Dataset],
    summary: dsl.Output[dsl.Artifact],
) -> None:
    """`config`: the config as JSON. `data`: a path or an address; `data_sha256`, unless empty, is checked.
    `champion`: the address of the model that serves now, or empty; its digest, unless empty, is checked."""
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from components.shell import NOTE, quick_imports, user_errors

    with quick_imports():
        from components import storage
        from components.config import Config
        from components.preprocess import core, sources

    settings = Config.model_validate_json(config)
    with user_errors(), TemporaryDirectory() as scratch:
        result = core.preprocess(
            settings,
            sources.fetch(data, data_sha256 or None, Path(scratch, "data")),
            source_kind=sources.SourceKind(data_source),
            champion=storage.champion(champion, champion_digest, Path(scratch, "champion"), settings.store),
            train=Path(train_data.path),
            test=Path(test_data.path),
        )
        Path(summary.path).write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
        for line in result.lines():
            print(NOTE + line, flush=True)
