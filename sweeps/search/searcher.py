"""The thin searcher that Ray Tune asks.

The ledger is the memory. A new driver rebuilds the search from `trials/*/trial.json`: it replays the trials in the
order they were asked for, serves those that have not ended, then goes on asking.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from sweeps.asked import asked_for, is_listed, listed_trials, num_planned
from sweeps.config import SweepConfig
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.identity import trial_id
from sweeps.ledger.records import ScoredCheckpoint, TrialRecord
from sweeps.results.rule import ChampionRule
from sweeps.search.listed import ListSearch, Search, lesson
from sweeps.search.places import Anywhere, Places
from sweeps.search.starts import refuse_own_run, starts_of
from training.config import MethodConfig, pack_together


def make_search(config: SweepConfig, rule: ChampionRule, run_dir: Path) -> Search:
    """The search that the sweep file names.

    Raises:
        UserError: the run that it is to start from is missing, has nothing to start from, or is this run.
    """
    if is_listed(config):
        return ListSearch(listed_trials(config))
    from sweeps.search.study import StudySearch  # Optuna takes a second, and a grid has no use for it

    refuse_own_run(config, run_dir)
    return StudySearch(config, rule, [start.values for start in starts_of(config)])


class LedgerSearcher(Searcher):  # type: ignore[misc]  # Ray ships no types
    """Ray Tune's searcher: first the ledger's trials that have not ended, then new ones up to the sweep's number.

    Trials of the ledger that the sweep file does not ask for (any more) are let be.

    Args:
        config: the sweep.
        folder: its run folder, base model's row included.
        extra: put beside `trial` and `config` into what the Trainable gets.
        at_once: how many trials to have with Ray at one time, asked each time; more would be asked for before there
            are scores to learn from.
        changed: called with each record this writes.
        places: where trials may run; default: anywhere, each alone.
        is_over: says that no more trials may be started, whatever is left.
    """

    def __init__(
        self,
        config: SweepConfig,
        folder: RunFolder,
        extra: Mapping[str, Any],
        at_once: Callable[[], int],
        changed: Callable[[TrialRecord], None],
        places: Places | None = None,
        is_over: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(metric="face_similarity", mode="max")
        self._folder, self._extra = folder, extra
        self._at_once, self._changed = at_once, changed
        self._places, self._is_over = places or Anywhere(), is_over
        base = folder.base()
        assert base is not None, "the base model is scored before trials are chosen"
        self._rule = ChampionRule.of(config.champion, base)
        self.search = make_search(config, self._rule, folder.dir)
        is_asked_for = asked_for(config)
        records = sorted(folder.trials(), key=lambda record: record.number)
        for record in records:
            self.search.replay(record, self._lesson(record))
        asked = [record for record in records if is_asked_for(record.method_config)]
        self._known = {record.trial for record in records}
        self._unfinished = [record for record in asked if not record.is_over]
        self._num_left = num_planned(config) - len(asked)
        self._numbers = {record.trial: record.number for record in records}
        self._running: dict[str, str] = {}
        self._placed: list[tuple[TrialRecord, Mapping[str, Any]]] = []
        """Trials that have their place and are served next."""
        self._to_retry: list[TrialRecord] = []
        self._taken_back: set[str] = set()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """A trial for Tune's `trial_id`; None when it must wait, `FINISHED` when there are no more."""
        if not self._placed:
            room = self._at_once() - len(self._running)
            if room <= 0 or not self._places.have_room():
                return None
            record = None if self._is_over() else self._next_trial()
            if record is None:  # one that runs may yet come back to be tried again
                return None if self._running else str(Searcher.FINISHED)
            self._placed = self._place(record, room)
            if not self._placed:
                self._unfinished.insert(0, record)
                return None
        record, extra = self._placed.pop(0)
        self._running[trial_id] = record.trial
        return {"trial": record.trial, "config": record.config, **self._extra, **extra}

    def _place(self, record: TrialRecord, room: int) -> list[tuple[TrialRecord, Mapping[str, Any]]]:
        """The trial and those that go with it, and what they are told; none while there is no place."""
        place = self._places.find(record, 1 + len(self._unfinished) + self._num_left)
        if place is None:
            return []
        together = [record, *self._company(record, min(place.seats, room) - 1)]
        if record.pack:
            together.sort(key=lambda each: record.pack.index(each.trial))
        elif len(together) > 1:
            pack = tuple(each.trial for each in together)
            together = [each.model_copy(update={"pack": pack}) for each in together]
            for each in together:  # before they begin, so that whoever goes on has them together again
                self._folder.write(each)
        place.take([each.trial for each in together])
        members = tuple(each.trial for each in together) if together[0].pack else ()
        return [(each, {**place.extra, "pack": members}) for each in together]

    def _company(self, record: TrialRecord, seats: int) -> list[TrialRecord]:
        """Up to so many more trials that train with one: those of its pack, or with a trial that is new other new ones.

        Of a pack that was cut off all that have not ended go on together.
        """
        if record.pack:
            mates = [each for each in self._unfinished if each.pack == record.pack]
            self._unfinished = [each for each in self._unfinished if each.pack != record.pack]
            return mates
        if record.started is not None or seats <= 0:
            return []
        config = record.method_config
        company = [each for each in self._unfinished if self._is_company(each, config)][:seats]
        self._unfinished = [each for each in self._unfinished if each not in company]
        while len(company) < seats and (other := self._new_trial()) is not None:
            if not self._is_company(other, config):
                self._unfinished.append(other)
                break  # the search is asked for no more than has a place
            company.append(other)
        return company

    @staticmethod
    def _is_company(record: TrialRecord, config: MethodConfig) -> bool:
        """Is it new, and may it train with one of this config?"""
        return record.started is None and not record.pack and pack_together(config, record.method_config)

    def _next_trial(self) -> TrialRecord | None:
        for place, record in enumerate(self._unfinished):
            if not self._is_with_others(record):
                return self._unfinished.pop(place)
        return self._new_trial() or (self._to_retry.pop(0) if self._to_retry else None)

    def _is_with_others(self, record: TrialRecord) -> bool:
        """Does its pack still run? What is lost of it waits for the rest, which may be lost, too."""
        return bool(set(record.pack) & set(self._running.values()))

    def retry(self, record: TrialRecord, *, at_once: bool) -> None:
        """Serve a trial again that failed by no fault of its own: at once, or when all others have had their turn."""
        if at_once:
            self._unfinished.insert(0, record)
        else:
            self._to_retry.append(record)

    def take_back(self, trial_id: str) -> None:
        """What Tune has under this id and lets go of is to be served anew."""
        self._taken_back.add(trial_id)

    def give_up(self, trial: str) -> None:
        """Close the question of a trial that this driver does not try again: nothing is learnt from it."""
        self.search.tell(self._numbers[trial], None)

    def _new_trial(self) -> TrialRecord | None:
        while self._num_left > 0:
            question = self.search.ask()
            if question is None:
                break
            trial = trial_id(question.config)
            if trial in self._known:  # the ledger has its answer already, and the search knows it
                self.search.pass_over(question.number)
                continue
            record = TrialRecord(
                trial=trial,
                method=question.config.method,
                status="running",
                config=question.config.model_dump(mode="json"),
                number=question.number,
                drawn=dict(question.drawn),
                sampler_notes=dict(question.notes),
            )
            self._folder.write(record)
            self._changed(record)
            self._known.add(trial)
            self._num_left -= 1
            self._numbers[trial] = question.number
            return record
        return None

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A search learns from ends only."""

    def on_trial_complete(self, trial_id: str, error: bool = False, **_: Any) -> None:
        """Tell the search what the ledger knows of the trial; Ray's own copy of the result is not consulted.

        An error is no answer: the question stays open until the trial is served again or given up.
        """
        trial = self._running.pop(trial_id)
        self._places.left(trial)
        if error:
            return
        record = self._folder.read(trial)
        if trial_id in self._taken_back:
            assert record is not None, "it was written before it was served"
            self.retry(record, at_once=True)
            return
        self.search.tell(self._numbers[trial], None if record is None else self._lesson(record))

    def _lesson(self, record: TrialRecord) -> ScoredCheckpoint | None:
        return lesson(record, self._rule)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the memory."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the memory."""
