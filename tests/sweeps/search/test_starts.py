"""What a search begins with: another run's best settings, published ones, then what the sampler asks.

pytest tests/sweeps/search/test_starts.py     a few seconds, no Ray session
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sweeps.config import SweepConfig, parse_sweep
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.records import TrialRecord
from sweeps.priors import PUBLISHED
from sweeps.search.starts import MOST_FROM_ANOTHER_RUN, starts_of, starts_warnings
from tests.sweeps.fake_run import write_sweep
from tests.sweeps.search.test_search import BASE_ALIGNMENT, drive, finish, new_folder, scored, searcher_over
from training.config import METHODS
from training.errors import UserError

LORA = {
    "rank": {"choices": [4, 16, 128]},
    "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
    "max_train_steps": 4,
}
DREAMBOOTH = {"learning_rate": {"low": 5e-7, "high": 5e-6, "log": True}, "max_train_steps": 4}
BOTH = {"lora": LORA, "dreambooth": DREAMBOOTH}


def sweep(sampler: str = "tpe", num_trials: int = 12, methods: Any = BOTH, **search: Any) -> SweepConfig:
    return parse_sweep(
        {
            "name": "ada",
            "base_model": "owner/model",
            "subject": {"photos": "photos", "instance_prompt": "a photo of sks woman", "class_prompt": "a woman"},
            "methods": methods,
            "search": {"sampler": sampler, "num_trials": num_trials, "seed": 3, **search},
            "evaluation": {"prompts": ["sks woman"], "at_steps": [2, 4]},
        }
    )


def other_run(folder: Path, *trials: tuple[str, dict[str, Any], float, float]) -> Path:
    """A run of another person with scored trials: method, config, face similarity and prompt alignment of each."""
    run = new_folder(folder)
    write_sweep(folder, "other", ["sks woman"], 1, [2, 4])
    for number, (method, config, similarity, alignment) in enumerate(trials):
        whole = METHODS[method].model_validate({"max_train_steps": 800, **config})
        record = TrialRecord(
            trial=f"{method}_{number}",
            method=method,  # type: ignore[arg-type]
            status="finished",
            config=whole.model_dump(mode="json"),
            checkpoints=(scored(similarity, alignment),),
            number=number,
        )
        run.write(record)
    return folder


def first_of(folder: RunFolder, number: int) -> list[tuple[str, int | None, float]]:
    records = sorted(folder.trials(), key=lambda record: record.number)[:number]
    return [(each.method, each.config.get("rank"), each.config["learning_rate"]) for each in records]


# --- published --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_the_first_trials_are_published_settings(sampler: str, tmp_path: Path) -> None:
    """In the table's order, at most a third of the trials; the others are the sampler's."""
    config, folder = sweep(sampler, priors="published"), new_folder(tmp_path)
    assert len(drive(config, folder)) == 12
    wanted = [
        ("lora", 16, 1e-4),
        ("dreambooth", None, 1e-6),
        ("lora", 4, 5e-4),
        ("dreambooth", None, 2e-6),
    ]
    assert first_of(folder, 4) == wanted
    published = {(setting.method, setting.values["learning_rate"]) for setting in PUBLISHED}
    later = {(method, rate) for method, _, rate in first_of(folder, 12)[4:]}
    assert not later & published


def test_only_what_the_space_holds_is_started_from() -> None:
    """A rank that is not among the choices, a rate outside, a fixed value that differs: no part of it is taken."""
    held = sweep(methods={"lora": {**LORA, "rank": 16}}, priors="published")
    assert [dict(start.values) for start in starts_of(held)] == [{"lora/learning_rate": 1e-4}]
    none = sweep(methods={"lora": {"rank": {"choices": [2, 3]}, "max_train_steps": 4}}, priors="published")
    assert starts_of(none) == []
    assert starts_warnings(none) == ["search.priors: the space holds none of the published settings"]
    opened = {**DREAMBOOTH, "with_prior_preservation": {"choices": [False, True]}}
    (start, *_) = starts_of(sweep(methods={"dreambooth": opened}, priors="published"))
    assert dict(start.values) == {
        "dreambooth/learning_rate": 1e-6,
        "dreambooth/with_prior_preservation": True,
    }


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_without_a_word_of_it_a_search_is_what_it_was(sampler: str, tmp_path: Path) -> None:
    """A sweep file of before asks what it asked before: the sampler's own first questions, which priors displace."""
    plain, explicit = sweep(sampler), sweep(sampler, priors="none")
    assert drive(plain, new_folder(tmp_path / "a")) == drive(explicit, new_folder(tmp_path / "b"))
    assert starts_of(plain) == []


def test_a_run_that_was_begun_without_them_is_not_disturbed(tmp_path: Path) -> None:
    """What is there stays and counts; of the published settings those come that have their turn after it."""
    folder = new_folder(tmp_path)
    before = drive(sweep(num_trials=12), folder, ends=2)
    begun = searcher_over(sweep(num_trials=12), folder).suggest("begun")
    assert isinstance(begun, dict)
    later = drive(sweep(num_trials=12, priors="published"), folder)
    assert later[0] == begun["trial"]
    assert not set(before) & set(later)
    assert len(before) + len(later) == 12
    assert first_of(folder, 4)[3] == ("dreambooth", None, 2e-6), "the fourth of the table has the fourth turn"


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
@pytest.mark.parametrize("killed_after", [1, 3, 4, 7])
def test_a_search_that_is_cut_goes_on_with_its_starts(sampler: str, killed_after: int, tmp_path: Path) -> None:
    """Cut among the first trials or after them, with an open value that no start names: as if it had not been."""
    methods = {"lora": {**LORA, "train_text_encoder": {"choices": [False, True]}}, "dreambooth": DREAMBOOTH}
    other = other_run(tmp_path / "other", ("dreambooth", {"learning_rate": 3e-6}, 0.8, BASE_ALIGNMENT))
    config = sweep(sampler, methods=methods, priors="published", warm_start=str(other))
    whole = drive(config, new_folder(tmp_path / "whole"))
    assert first_of(RunFolder(tmp_path / "whole"), 1) == [("dreambooth", None, 3e-6)]
    cut = new_folder(tmp_path / "cut")
    assert drive(config, cut, ends=killed_after) + drive(config, cut) == whole
    assert len(whole) == 12


def test_the_sampler_still_has_its_random_start(tmp_path: Path) -> None:
    """Starts lie close together, so that they do not stand for the random trials that TPE begins with."""
    config, folder = sweep("tpe", 12, priors="published"), new_folder(tmp_path)
    searcher = searcher_over(config, folder)
    search: Any = searcher.search
    assert search._sampler(0, at_random=False)._n_startup_trials == 4 + 4


# --- another run ------------------------------------------------------------------------------------------------------


def test_another_runs_best_come_first(tmp_path: Path) -> None:
    """By its leaderboard: not what lost its prompts, not twice the same, none that the space does not hold."""
    follows, lost = BASE_ALIGNMENT, BASE_ALIGNMENT - 0.1
    other = other_run(
        tmp_path / "other",
        ("lora", {"rank": 16, "learning_rate": 2e-4}, 0.5, follows),
        ("lora", {"rank": 128, "learning_rate": 3e-4}, 0.9, lost),
        ("lora", {"rank": 64, "learning_rate": 3e-4}, 0.8, follows),
        ("lora", {"rank": 4, "learning_rate": 3e-4}, 0.7, follows),
        ("lora", {"rank": 4, "learning_rate": 3e-4, "seed": 1}, 0.65, follows),
        ("dreambooth", {"learning_rate": 4e-6}, 0.6, follows),
        ("dreambooth", {"learning_rate": 4e-4}, 0.85, follows),
    )
    config, folder = sweep(num_trials=15, warm_start=str(other), priors="published"), new_folder(tmp_path / "ada")
    assert len(drive(config, folder)) == 15
    assert first_of(folder, 5) == [
        ("lora", 4, 3e-4),
        ("dreambooth", None, 4e-6),
        ("lora", 16, 2e-4),
        ("lora", 16, 1e-4),
        ("dreambooth", None, 1e-6),
    ]
    assert next(start.source for start in starts_of(config)) == "lora_3 of other"
    assert starts_warnings(config) == []


def test_few_of_another_run_are_tried(tmp_path: Path) -> None:
    """However good its many trials are among themselves."""
    trials = [("lora", {"rank": 4, "learning_rate": 1e-4 * n}, 0.5 + 0.01 * n, BASE_ALIGNMENT) for n in range(1, 9)]
    config = sweep(num_trials=60, warm_start=str(other_run(tmp_path / "other", *trials)))
    assert len(starts_of(config)) == MOST_FROM_ANOTHER_RUN


def test_two_sweeps_of_one_file_have_the_same_trials(tmp_path: Path) -> None:
    """Given the other run's ledger, whenever and wherever they run."""
    other = other_run(tmp_path / "other", ("lora", {"rank": 4, "learning_rate": 3e-4}, 0.7, BASE_ALIGNMENT))
    config = sweep(warm_start=str(other))
    assert drive(config, new_folder(tmp_path / "a")) == drive(config, new_folder(tmp_path / "b"))


def test_what_scores_the_other_run_had_is_never_told(tmp_path: Path) -> None:
    """They are another person's: the study knows this run's trials alone."""
    other = other_run(tmp_path / "other", ("lora", {"rank": 4, "learning_rate": 3e-4}, 0.99, BASE_ALIGNMENT))
    folder = new_folder(tmp_path / "ada")
    searcher = searcher_over(sweep(warm_start=str(other)), folder)
    suggestion = searcher.suggest("a")
    assert isinstance(suggestion, dict)
    finish(folder, suggestion["trial"])
    searcher.on_trial_complete("a")
    search: Any = searcher.search
    assert [trial.value != 0.99 for trial in search.study.trials] == [True]


def test_a_run_that_nothing_can_be_started_from_is_refused(tmp_path: Path) -> None:
    """Missing, no run folder, without a scored trial, or the run itself: each is named."""
    (tmp_path / "folder").mkdir()
    new_folder(tmp_path / "empty")
    for name, law in (
        ("nowhere", "no such run folder"),
        ("folder", "a run folder holds"),
        ("empty", "needs a run with scored trials"),
    ):
        with pytest.raises(UserError, match=f"search.warm_start: {law}.*{name}"):
            starts_of(sweep(warm_start=str(tmp_path / name)))
    own = other_run(tmp_path / "own", ("lora", {"rank": 4, "learning_rate": 3e-4}, 0.7, BASE_ALIGNMENT))
    with pytest.raises(UserError, match=r"search.warm_start: must be another run, got this one's own folder .*own"):
        searcher_over(sweep(warm_start=str(own)), RunFolder(own))


def test_a_space_that_holds_none_of_it_is_told(tmp_path: Path) -> None:
    """The sweep runs all the same: the space may have been changed since."""
    other = other_run(tmp_path / "other", ("lora", {"rank": 64, "learning_rate": 3e-4}, 0.7, BASE_ALIGNMENT))
    (warning,) = starts_warnings(sweep(warm_start=str(other)))
    assert warning.startswith("search.warm_start: the space holds none of the best settings of ")


@pytest.mark.parametrize("key", ["priors", "warm_start"])
@pytest.mark.parametrize("sampler", ["grid", "random"])
def test_a_list_that_is_decided_beforehand_has_no_first_trials(sampler: str, key: str) -> None:
    """The key would do nothing, so it is refused with the samplers that have it."""
    given: dict[str, Any] = {key: {"priors": "published", "warm_start": "runs/other"}[key]}
    with pytest.raises(UserError, match=f"search.{key}: is for the samplers tpe and nsga2"):
        sweep(sampler, methods={"lora": {"rank": {"choices": [1, 2]}, "max_train_steps": 4}}, **given)
