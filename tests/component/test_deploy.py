"""Asking for a rollout and following it, against a platform that is a list."""

import dataclasses
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import predictor_models
import pytest

from components.config import Config
from components.deploy.core import deploy, expected_scores, plan_of
from serin import model
from serin.errors import TryAgain, UserError
from serin.judge import Scores
from serin.platforms.ports import ALL, Champion, Which
from serin.rollout.document import ModelRollout, Phase, Status


@dataclasses.dataclass
class ListPlatform:
    """Every look at a rollout moves it to the next of `phases`; the last one stays."""

    phases: Sequence[Phase]
    serving: Champion | None = None
    asked: list[ModelRollout] = dataclasses.field(default_factory=list)
    looks: int = 0

    def champion(self, service: str) -> Champion | None:
        return self.serving

    def rollouts(self, which: Which = ALL) -> list[ModelRollout]:
        return self.asked

    def find(self, name: str) -> ModelRollout | None:
        phase = self.phases[min(self.looks, len(self.phases) - 1)]
        self.looks += 1
        self.asked = [each.model_copy(update={"status": Status(phase=phase)}) for each in self.asked]
        return self.asked[-1]

    def create(self, rollout: ModelRollout) -> None:
        self.asked.append(rollout)

    def problem(self) -> str | None:
        return None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    predictor_models.write(tmp_path / "model")
    return tmp_path / "model"


def config(release: object = "fast") -> Config:
    return Config.model_validate(
        {"service": "churn", "data": {"source": "x.csv"}, "target": "y", "positive": "1", "release": release}
    )


def ticking(step_s: float = 1.0) -> Iterator[datetime]:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    while True:
        yield at
        at += timedelta(seconds=step_s)


def run(
    platform: ListPlatform, folder: Path, *, step_s: float = 1.0, compared_with: str | None = None
) -> tuple[ModelRollout, list[str]]:
    clock, told = ticking(step_s), []
    serving = platform.serving.storage_uri if platform.serving else ""
    ended = deploy(
        config(),
        platform,
        folder,
        str(folder),
        compared_with=serving if compared_with is None else compared_with,
        tell=told.append,
        sleep=lambda _: None,
        now=lambda: next(clock),
    )
    return ended, told


def test_it_follows_to_the_terminal_phase_and_tells_each_change_once(folder: Path) -> None:
    platform = ListPlatform([Phase.DARK, Phase.CHECKING, Phase.CHECKING, Phase.PROMOTED])
    ended, told = run(platform, folder)
    assert ended.status.phase is Phase.PROMOTED
    assert [line.split(":")[0] for line in told[1:]] == ["Dark", "Checking", "Promoted"]
    assert ended.spec.candidate.digest == model.digest(folder)


def test_a_second_call_attaches_to_the_rollout_under_way(folder: Path) -> None:
    platform = ListPlatform([Phase.PROMOTED])
    name = run(platform, folder)[0].metadata.name
    platform.asked = [each.model_copy(update={"status": Status(phase=Phase.PROGRESSING)}) for each in platform.asked]
    assert run(platform, folder)[0].metadata.name == name
    assert len(platform.asked) == 1


def test_a_model_that_was_rolled_back_gets_a_new_attempt(folder: Path) -> None:
    platform = ListPlatform([Phase.ROLLED_BACK])
    names = [run(platform, folder)[0].metadata.name for _ in range(2)]
    assert names[1] == f"{names[0]}-2"


def test_a_model_that_serves_already_is_not_released_again(folder: Path) -> None:
    platform = ListPlatform([Phase.PROMOTED])
    name = run(platform, folder)[0].metadata.name
    platform.serving = Champion("churn-predictor-00001", model.digest(folder), str(folder))
    assert run(platform, folder)[0].metadata.name == name
    other = folder.with_name("other")
    predictor_models.write(other)
    (other / model.CARD_FILE).write_text("another model", encoding="utf-8")
    platform.serving = Champion("churn-predictor-00002", model.seal(other), str(other))
    assert run(platform, folder)[0].metadata.name == f"{name}-2"


def test_it_gives_up_after_the_plans_deadlines(folder: Path) -> None:
    with pytest.raises(TryAgain, match="still Progressing"):
        run(ListPlatform([Phase.PROGRESSING]), folder, step_s=3600)


def test_it_leaves_a_rollout_that_waits_for_a_person_at_the_plans_deadline(folder: Path) -> None:
    class Undecided(ListPlatform):
        def find(self, name: str) -> ModelRollout | None:
            begun = datetime(2026, 1, 1, tzinfo=UTC)
            return super().find(name).model_copy(update={"status": Status(phase=Phase.WAITING, started_at=begun)})

    platform = Undecided([Phase.WAITING])
    with pytest.raises(TryAgain, match="waits for a decision"):
        run(platform, folder, step_s=60)
    assert platform.looks * 60 <= 7200 + 120, "the deadline is two hours"


def test_a_platform_that_does_not_answer_for_a_while_is_asked_again(folder: Path) -> None:
    class Away(ListPlatform):
        def find(self, name: str) -> ModelRollout | None:
            found = super().find(name)
            if self.looks in (2, 3):
                raise TryAgain("the API server does not answer", delay_s=1)
            return found

    ended, told = run(Away([Phase.DARK, Phase.DARK, Phase.DARK, Phase.PROMOTED]), folder)
    assert ended.status.phase is Phase.PROMOTED
    assert [line.split(":")[0] for line in told[1:]] == ["Dark", "the API server does not answer", "Promoted"]


def test_a_rollout_that_was_deleted_ends_the_step(folder: Path) -> None:
    class Deleted(ListPlatform):
        def find(self, name: str) -> ModelRollout | None:
            return None

    with pytest.raises(UserError, match="was deleted"):
        run(Deleted([Phase.DARK]), folder)


def test_a_damaged_model_is_never_asked_for(folder: Path) -> None:
    (folder / "model" / "model.onnx").write_bytes(b"other")
    platform = ListPlatform([Phase.PROMOTED])
    with pytest.raises(UserError, match="digest"):
        run(platform, folder)
    assert platform.asked == []


@pytest.mark.parametrize(
    ("release", "named"),
    [("quick", "quick"), ({"stages": []}, "release.stages"), ({"stages": [{"traffic": 200}]}, "traffic")],
)
def test_a_wrong_plan_is_named(release: object, named: str) -> None:
    with pytest.raises(UserError, match=named):
        plan_of(config(release))


def test_another_learner_is_expected_to_score_differently(folder: Path, tmp_path: Path) -> None:
    assert expected_scores(None, folder) is Scores.SAME
    serving = Champion("r", model.digest(folder), str(folder))
    assert expected_scores(serving, folder) is Scores.SAME
    other = tmp_path / "other"
    predictor_models.write(other)
    signature = model.signature(other).model_copy(update={"learner": "xgboost"})
    (other / model.SIGNATURE_FILE).write_text(signature.model_dump_json(), encoding="utf-8")
    assert expected_scores(serving, other) is Scores.DIFFERENT


@pytest.mark.parametrize("compared_with", ["", "/models/rule"])
def test_a_verdict_about_another_champion_than_the_one_that_serves_releases_nothing(
    folder: Path, tmp_path: Path, compared_with: str
) -> None:
    platform = ListPlatform([Phase.PROMOTED], Champion("r2", "sha256:" + "5" * 64, str(tmp_path / "newer")))
    with pytest.raises(UserError, match=r"churn now serves another model \(.*newer\); run the pipeline again"):
        run(platform, folder, compared_with=compared_with)
    assert platform.asked == []


def test_a_step_that_is_tried_again_after_its_model_was_promoted_ends_well(folder: Path) -> None:
    platform = ListPlatform([Phase.PROMOTED])
    run(platform, folder)
    platform.serving = Champion("r2", model.digest(folder), str(folder))
    ended, _ = run(platform, folder, compared_with="/models/rule")
    assert ended.status.phase is Phase.PROMOTED
    assert len(platform.asked) == 1
