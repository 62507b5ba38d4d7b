"""Names of rollouts, and when an old one still stands."""

import threading

import pytest

from serin import release
from serin.platforms.embedded.client import Embedded
from serin.platforms.ports import ALL, Which
from serin.rollout.document import Candidate, Metadata, ModelRollout, Phase, Spec, Status


def tried(**phases: Phase) -> list[ModelRollout]:
    return [
        ModelRollout(
            metadata=Metadata(name=name.replace("_", "-")),
            spec=Spec(service="churn", candidate=Candidate(storage_uri="/models/2")),
            status=Status(phase=phase),
        )
        for name, phase in phases.items()
    ]


def attached(rollouts: list[ModelRollout], *, serving: bool = False) -> tuple[str, str | None]:
    name, found = release.attach(rollouts, "churn-12ab", serving=serving)
    return name, found.metadata.name if found else None


def test_a_model_never_tried_gets_its_own_name():
    assert attached([]) == ("churn-12ab", None)
    assert attached(tried(churn_12abcd=Phase.DARK, churn_12ab_old=Phase.DARK, other=Phase.DARK)) == (
        "churn-12ab",
        None,
    )


@pytest.mark.parametrize("phase", [phase for phase in Phase if not phase.terminal])
@pytest.mark.parametrize("serving", [False, True])
def test_one_under_way_is_found_again(phase, serving):
    assert attached(tried(churn_12ab=phase), serving=serving) == ("churn-12ab", "churn-12ab")


@pytest.mark.parametrize("phase", [Phase.ROLLED_BACK, Phase.FAILED])
@pytest.mark.parametrize("serving", [False, True])
def test_one_that_failed_may_be_tried_again(phase, serving):
    assert attached(tried(churn_12ab=phase), serving=serving) == ("churn-12ab-2", None)


def test_one_that_made_it_stands_while_it_serves():
    promoted = tried(churn_12ab=Phase.ROLLED_BACK, churn_12ab_2=Phase.PROMOTED, other=Phase.PROMOTED)
    assert attached(promoted, serving=True) == ("churn-12ab-2", "churn-12ab-2")
    assert attached(promoted, serving=False) == ("churn-12ab-3", None)


def test_only_the_latest_counts():
    assert attached(tried(churn_12ab=Phase.PROMOTED, churn_12ab_2=Phase.DARK)) == ("churn-12ab-2", "churn-12ab-2")
    assert attached(tried(churn_12ab=Phase.PROMOTED, churn_12ab_2=Phase.FAILED), serving=True) == (
        "churn-12ab-3",
        None,
    )


def test_a_name_that_is_taken_is_never_given_again():
    left = tried(churn_12ab=Phase.FAILED, churn_12ab_3=Phase.FAILED)  # somebody deleted the second
    assert attached(left) == ("churn-12ab-4", None)
    assert attached(left[1:]) == ("churn-12ab-4", None)


def test_a_release_asked_for_twice_at_the_same_moment_is_one(tmp_path):
    """Both look before either has asked."""
    both = threading.Barrier(2)

    class Together(Embedded):
        looked = False

        def rollouts(self, which: Which = ALL) -> list[ModelRollout]:
            found = super().rollouts(which)
            if not self.looked:
                self.looked = True
                both.wait(10)
            return found

    spec = Spec(service="churn", candidate=Candidate(storage_uri="/models/2"))
    names: list[str] = []

    def ask() -> None:
        names.append(release.request(Together(tmp_path / "home"), spec, "sha256:12ab34cd").metadata.name)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert names == ["churn-12ab34cd"] * 2
    assert len(Embedded(tmp_path / "home").rollouts()) == 1
