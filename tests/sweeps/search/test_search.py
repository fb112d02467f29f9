"""The searches: what they ask, what they learn, and that a cut search asks what an uncut one would.

pytest tests/sweeps/search/test_search.py     a few seconds, no Ray session
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from ray.tune.search import Searcher

from sweeps.asked import listed_trials, num_planned
from sweeps.config import SweepConfig, parse_sweep
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.identity import config_hash
from sweeps.ledger.records import ScoredCheckpoint, TrialRecord
from sweeps.results.rule import ChampionRule
from sweeps.search import study
from sweeps.search.listed import FLOOR, is_complete
from sweeps.search.searcher import LedgerSearcher
from sweeps.search.study import REPEATS_BEFORE_RANDOM, StudySearch
from sweeps.space import grid
from training.config import LoraConfig, MethodConfig

BASE_ALIGNMENT = 0.25


def sweep(sampler: str, num_trials: int | None = 12, **methods: Any) -> SweepConfig:
    methods = methods or {
        "lora": {
            "rank": {"choices": [2, 16, 128]},
            "learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
            "max_train_steps": 4,
        },
        "dreambooth": {"learning_rate": {"low": 1e-7, "high": 1e-5, "log": True}, "max_train_steps": 4},
    }
    return parse_sweep(
        {
            "name": "ada",
            "base_model": "owner/model",
            "subject": {"photos": "photos", "instance_prompt": "a photo of sks woman"},
            "methods": methods,
            "search": {"sampler": sampler, "num_trials": num_trials, "seed": 3},
            "evaluation": {"prompts": ["sks woman"], "at_steps": [2, 4]},
        }
    )


def scored(face_similarity: float, prompt_alignment: float, step: int = 4) -> ScoredCheckpoint:
    return ScoredCheckpoint(
        step=step,
        checkpoint="c",
        images="i",
        face_similarity=face_similarity,
        prompt_alignment=prompt_alignment,
        num_images=1,
        num_faces=1,
    )


def pretend(config: MethodConfig) -> ScoredCheckpoint:
    """A landscape: likeness peaks at LoRA rates of 1e-3, alignment falls with the rate."""
    distance = abs(math.log10(config.learning_rate) + 3)
    likeness = 0.8 - 0.2 * distance + (0.05 if isinstance(config, LoraConfig) and config.rank == 16 else 0)
    return scored(likeness, BASE_ALIGNMENT - 10 * config.learning_rate)


def new_folder(path: Path) -> RunFolder:
    path.mkdir(exist_ok=True)
    folder = RunFolder(path)
    base = TrialRecord(
        trial="base",
        method="base",
        status="finished",
        config={},
        checkpoints=(scored(0.1, BASE_ALIGNMENT, step=0),),
    )
    folder.write(base)
    return folder


def searcher_over(config: SweepConfig, folder: RunFolder, at_once: int = 100) -> LedgerSearcher:
    return LedgerSearcher(config, folder, {}, at_once=lambda: at_once, changed=lambda _: None)


def finish(folder: RunFolder, trial: str) -> TrialRecord:
    record = folder.read(trial)
    assert record is not None
    done = record.model_copy(update={"status": "finished", "checkpoints": (pretend(record.method_config),)})
    folder.write(done)
    return done


def drive(config: SweepConfig, folder: RunFolder, ends: int | None = None) -> list[str]:
    """Play Ray, one trial at a time, until the searcher has no more or `ends` trials have ended; the trials served."""
    searcher = searcher_over(config, folder)
    served: list[str] = []
    while ends is None or len(served) < ends:
        tune_id = f"tune{len(served)}"
        suggestion = searcher.suggest(tune_id)
        if suggestion == Searcher.FINISHED:
            break
        assert isinstance(suggestion, dict)
        served.append(suggestion["trial"])
        finish(folder, suggestion["trial"])
        searcher.on_trial_complete(tune_id, result={})
    if isinstance(searcher.search, StudySearch):
        states = {trial.state for trial in searcher.search.study.trials}
        assert optuna.trial.TrialState.RUNNING not in states
    return served


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
@pytest.mark.parametrize("killed_after", [1, 5, 9])
def test_a_cut_search_asks_what_an_uncut_one_asks(sampler: str, killed_after: int, tmp_path: Path) -> None:
    """A new driver that rebuilds the search from the ledger goes on with the very same trials."""
    config = sweep(sampler)
    whole = drive(config, new_folder(tmp_path / "whole"))
    cut = new_folder(tmp_path / "cut")
    first = drive(config, cut, ends=killed_after)
    second = drive(config, cut)
    assert first + second == whole
    assert len(whole) == 12


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random", "grid"])
def test_what_was_begun_is_served_first_and_nothing_twice(sampler: str, tmp_path: Path) -> None:
    """After a kill the trials in progress come first, in their order; an ended one never comes again."""
    config = sweep(sampler, num_trials=6, lora={"rank": {"choices": [1, 2, 3, 4, 5, 6]}, "max_train_steps": 4})
    folder = new_folder(tmp_path)
    searcher = searcher_over(config, folder)
    begun = [searcher.suggest(f"tune{i}")["trial"] for i in range(3)]  # type: ignore[index]
    finish(folder, begun[1])
    again = drive(config, folder)
    assert again[:2] == [begun[0], begun[2]]
    assert begun[1] not in again
    assert len({*begun, *again}) == 6
    assert is_complete(config, folder)


def test_a_grid_is_run_whole(tmp_path: Path) -> None:
    """All combinations, each once, whatever was done before."""
    config = sweep(
        "grid", None, lora={"rank": {"choices": [2, 4]}, "seed": {"choices": [0, 1, 2]}, "max_train_steps": 4}
    )
    folder = new_folder(tmp_path)
    served = drive(config, folder, ends=2) + drive(config, folder)
    wanted = {config_hash(trial) for trial in grid(config.methods, [2, 4])}
    assert {config_hash(record.method_config) for record in folder.trials()} == wanted
    assert len(served) == len(set(served)) == 6


def test_more_trials_extend_a_random_list() -> None:
    """Raising num_trials keeps the trials there were."""
    few, many = listed_trials(sweep("random", 5)), listed_trials(sweep("random", 9))
    assert many[:5] == few
    assert len({config_hash(trial) for trial in many}) == 9


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_a_small_space_is_used_up_without_repeats(sampler: str, tmp_path: Path) -> None:
    """Suggestions that are known are not run again, and the search ends when the space does."""
    config = sweep(
        sampler, 50, lora={"rank": {"choices": [1, 2, 3]}, "seed": {"choices": [0, 1]}, "max_train_steps": 4}
    )
    assert num_planned(config) == 6
    served = drive(config, new_folder(tmp_path))
    assert len(served) == len(set(served)) == 6


def test_tpe_learns_the_champions_rule(tmp_path: Path) -> None:
    """It goes where likeness is high, but not where prompts are no longer followed."""
    config = sweep("tpe", 40, lora={"learning_rate": {"low": 1e-5, "high": 1e-1, "log": True}, "max_train_steps": 4})
    folder = new_folder(tmp_path)
    drive(config, folder)
    late = [record.method_config.learning_rate for record in folder.trials() if record.number >= 20]
    highest_that_follows = config.champion.prompt_alignment_margin / 10  # see `pretend`
    by_chance = 0.2  # of the range's four decades
    assert sum(3e-4 < rate <= highest_that_follows for rate in late) >= 2 * by_chance * len(late)


def test_nsga2_hears_both_scores_and_mixes_both_methods_genes(tmp_path: Path) -> None:
    """Two objectives reach the study, and later generations inherit values instead of drawing them anew."""
    config = sweep("nsga2", 24)
    folder = new_folder(tmp_path)
    searcher = searcher_over(config, folder)
    for i in range(24):
        suggestion = searcher.suggest(f"tune{i}")
        assert isinstance(suggestion, dict)
        finish(folder, suggestion["trial"])
        searcher.on_trial_complete(f"tune{i}")
    assert isinstance(searcher.search, StudySearch)
    trials = searcher.search.study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    assert all(len(trial.values) == 2 for trial in trials)
    rates = [trial.params["lora/learning_rate"] for trial in trials]
    assert len(set(rates)) < len(rates)


def test_every_end_closes_its_question(tmp_path: Path) -> None:
    """Finished, failed by its settings, lost with its machine, stopped without a score: none stays open in Optuna."""
    config = sweep("tpe", 4)
    folder = new_folder(tmp_path)
    searcher = searcher_over(config, folder)
    suggestions = [searcher.suggest(f"tune{i}") for i in range(4)]
    trials = [suggestion["trial"] for suggestion in suggestions]  # type: ignore[index]
    finish(folder, trials[0])
    for trial, status, fault in [(trials[1], "failed", "trial"), (trials[2], "failed", "machine")]:
        record = folder.read(trial)
        assert record is not None
        folder.write(record.model_copy(update={"status": status, "fault": fault}))
    for i in range(4):
        searcher.on_trial_complete(f"tune{i}", error=i == 2)
    searcher.give_up(trials[2])
    assert isinstance(searcher.search, StudySearch)
    states = [trial.state.name for trial in searcher.search.study.trials]
    assert states == ["COMPLETE", "COMPLETE", "FAIL", "FAIL"]
    assert searcher.search.study.trials[1].values == [FLOOR]


def test_no_more_trials_at_once_than_there_is_room_for(tmp_path: Path) -> None:
    """A question asked too early would be asked before there are scores to learn from."""
    searcher = searcher_over(sweep("tpe"), new_folder(tmp_path), at_once=2)
    assert isinstance(searcher.suggest("a"), dict)
    assert isinstance(searcher.suggest("b"), dict)
    assert searcher.suggest("c") is None
    searcher.on_trial_complete("a")
    assert isinstance(searcher.suggest("c"), dict)


def test_a_space_that_was_changed_keeps_the_trials_there_were(tmp_path: Path) -> None:
    """Other choices are allowed; what lies outside of the new space stays, and stands for none of the new trials."""
    folder = new_folder(tmp_path)
    drive(sweep("tpe", 3, lora={"rank": {"choices": [1, 2, 3]}, "max_train_steps": 4}), folder)
    wider = sweep("tpe", 5, lora={"rank": {"choices": [3, 4, 5, 6, 7]}, "max_train_steps": 4})
    assert not is_complete(wider, folder)
    assert len(drive(wider, folder)) == 4
    assert len(folder.trials()) == 7
    assert is_complete(wider, folder)


def test_a_trial_that_failed_by_no_fault_of_its_own_is_served_again(tmp_path: Path) -> None:
    """At once where its worker was lost, else after all others; FINISHED waits for what still runs."""
    config = sweep("grid", None, lora={"rank": {"choices": [1, 2, 3]}, "max_train_steps": 4})
    folder = new_folder(tmp_path)
    searcher = searcher_over(config, folder, at_once=2)
    first, second = (searcher.suggest(name)["trial"] for name in ("a", "b"))  # type: ignore[index]
    for name, trial, at_once in (("a", first, False), ("b", second, True)):
        record = folder.read(trial)
        assert record is not None
        searcher.on_trial_complete(name, error=True)
        searcher.retry(record, at_once=at_once)
    assert searcher.suggest("c")["trial"] == second  # type: ignore[index]
    third = searcher.suggest("d")["trial"]  # type: ignore[index]
    assert third not in (first, second)
    searcher.on_trial_complete("c")
    assert searcher.suggest("e")["trial"] == first  # type: ignore[index]
    searcher.on_trial_complete("d")
    assert searcher.suggest("f") is None, "the last one may come back yet"
    searcher.on_trial_complete("e")
    assert searcher.suggest("f") == Searcher.FINISHED


def test_lost_trials_do_not_make_the_search_random(tmp_path: Path) -> None:
    """Machines that fail are no sign that the space is used up."""
    config = sweep("tpe", 100)
    searcher = searcher_over(config, new_folder(tmp_path))
    assert isinstance(searcher.search, StudySearch)
    for i in range(REPEATS_BEFORE_RANDOM + 2):
        suggestion = searcher.suggest(f"tune{i}")
        assert isinstance(suggestion, dict)
        searcher.on_trial_complete(f"tune{i}", error=True)
        searcher.give_up(suggestion["trial"])
    assert isinstance(searcher.search.study.sampler, optuna.samplers.TPESampler)


@pytest.mark.parametrize("sampler", ["grid", "random", "tpe", "nsga2"])
def test_a_changed_sweep_is_not_complete(sampler: str, tmp_path: Path) -> None:
    """Another space of the same size has trials of its own to run; those of the old one stay and are let be."""
    folder = new_folder(tmp_path)
    old = sweep(sampler, None, lora={"rank": {"choices": [2, 4]}, "max_train_steps": 4})
    new = sweep(sampler, None, lora={"rank": {"choices": [8, 16]}, "max_train_steps": 4})
    first = drive(old, folder, ends=1)
    begun = searcher_over(old, folder).suggest("begun")
    assert isinstance(begun, dict)
    served = drive(new, folder)
    assert is_complete(new, folder)
    assert len(served) == 2
    assert not {*first, begun["trial"]} & set(served)
    assert not is_complete(old, folder)
    assert drive(old, folder) == [begun["trial"]], "the old file asks for the old trials still"


@pytest.fixture
def short_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A study that remembers 8 to 12 answers."""
    monkeypatch.setattr(study, "MAX_REMEMBERED", 12)
    monkeypatch.setattr(study, "REMEMBERED_BEST", 4)
    monkeypatch.setattr(study, "REMEMBERED_OTHERS", 4)


@pytest.mark.usefixtures("short_memory")
@pytest.mark.parametrize("killed_after", [10, 14, 25])
def test_a_search_that_forgets_is_cut_without_a_trace(killed_after: int, tmp_path: Path) -> None:
    """A new driver forgets what the old one had forgotten."""
    config = sweep("tpe", 40)
    whole = drive(config, new_folder(tmp_path / "whole"))
    cut = new_folder(tmp_path / "cut")
    assert drive(config, cut, ends=killed_after) + drive(config, cut) == whole
    assert len(whole) == 40


@pytest.mark.usefixtures("short_memory")
def test_a_search_never_forgets_its_best(tmp_path: Path) -> None:
    """Of many answers it keeps a bounded number, the best among them; what is still open stays open."""
    config, folder = sweep("tpe", 60), new_folder(tmp_path)
    searcher = searcher_over(config, folder)
    assert isinstance(searcher.search, StudySearch)
    rule = ChampionRule.of(config.champion, folder.base())
    told: list[ScoredCheckpoint] = []
    served = [searcher.suggest(f"tune{i}") for i in range(3)]
    for i in range(3, 60):
        first = served.pop(0)
        told += finish(folder, first["trial"]).checkpoints  # type: ignore[index]
        searcher.on_trial_complete(f"tune{i - 3}")
        served.append(searcher.suggest(f"tune{i}"))
        trials = searcher.search.study.get_trials(deepcopy=False)
        answers = [trial for trial in trials if trial.state == optuna.trial.TrialState.COMPLETE]
        assert len(answers) <= 13
        assert len(trials) - len(answers) == 3, "the open ones"
        best = [found.face_similarity for found in sorted(told, key=rule.order)[:4]]
        assert set(best) <= {answer.value for answer in answers}


def test_a_sweep_of_a_thousand_trials_forgets_nothing() -> None:
    """What a search of that size asks is what it asked before searches could forget."""
    assert study.MAX_REMEMBERED >= 1000
    assert study.REMEMBERED_BEST + study.REMEMBERED_OTHERS < study.MAX_REMEMBERED


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_a_trial_costs_the_ledger_the_same_however_many_there_are(
    sampler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice the trials, twice the reads."""
    num_reads, read = 0, RunFolder.read_here

    def counted(folder: RunFolder, trial: str) -> TrialRecord | None:
        nonlocal num_reads
        num_reads += 1
        return read(folder, trial)

    monkeypatch.setattr(RunFolder, "read_here", counted)

    def reads(num_trials: int) -> int:
        nonlocal num_reads
        num_reads = 0
        assert len(drive(sweep(sampler, num_trials), new_folder(tmp_path / str(num_trials)))) == num_trials
        return num_reads

    assert 0 < reads(24) <= 2 * reads(12)
