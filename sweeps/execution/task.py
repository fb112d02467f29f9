"""What the driver gives to trials and to whatever computes for them. Light: a trial's own process has no torch."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from evaluation.config import EvaluationConfig, SecondOpinionConfig
from sweeps.config import ChampionConfig, ListedSweep, SweepConfig, rare_token
from sweeps.execution.cluster import TrialResources
from sweeps.ledger.folder import LedgerName, RunFolder
from sweeps.ledger.mirror import open_run
from training.config import MethodConfig
from training.share import Share

if TYPE_CHECKING:
    from sweeps.execution.worker import TrialWorker


@dataclass(frozen=True)
class Scoring:
    """What all checkpoints of a sweep are scored with."""

    base_model: str
    evaluation: EvaluationConfig
    rare_token: str
    """Left out of the prompts that CLIP reads."""
    second_opinion: SecondOpinionConfig | None = None
    """Judges that the search does not hear."""

    @classmethod
    def of(cls, config: SweepConfig) -> Scoring:
        """As the sweep file says."""
        second = config.evaluation.second_opinion if isinstance(config, ListedSweep) else None
        return cls(config.base, config.evaluation, rare_token(config.subject), second)

    @property
    def first_look(self) -> Scoring:
        """What a checkpoint is scored with when it has been trained."""
        return replace(self, evaluation=self.evaluation.first_look)

    def beyond(self, images_per_prompt: int) -> Scoring:
        """What is still to be drawn of one that has so many pictures of each prompt."""
        return replace(self, evaluation=self.evaluation.beyond(images_per_prompt))


@dataclass(frozen=True)
class TrialTask:
    """What every trial of a sweep is given by the driver, besides its own hyperparameters."""

    run_dir: str
    storage: str | None
    resources: Mapping[str, TrialResources]
    """Of one trial of each method."""
    scoring: Scoring
    champion: ChampionConfig
    ledger: LedgerName = "trials"

    @classmethod
    def of(cls, config: SweepConfig, folder: RunFolder, resources: Mapping[str, TrialResources]) -> TrialTask:
        """As the sweep file says, on these resources."""
        return cls(str(folder.dir), config.storage, resources, Scoring.of(config), config.champion, folder.ledger)

    def open_run(self) -> RunFolder:
        """The run folder as this machine has it."""
        return open_run(self.run_dir, self.storage, self.ledger)


@dataclass(frozen=True)
class WorkerRecipe:
    """How to open a trial's worker, wherever that is."""

    worker_class: str
    """`module:name`, found where the worker is opened."""
    task: TrialTask
    trial: str
    hyperparameters: MethodConfig
    reached: int
    """Step of the trial's newest scored checkpoint, 0 where there is none."""

    def open(self, share: Share) -> TrialWorker:
        """The worker that has this share of the trial."""
        worker_class: type[TrialWorker] = pkgutil.resolve_name(self.worker_class)
        return worker_class(self.task, self.trial, self.hyperparameters, self.reached, share)


@dataclass(frozen=True)
class Job:
    """Work that is no trial's, for a trial server.

    Done again from its beginning, it goes on from what it has left in the run folder.
    """

    function: str
    """`module:name`, found where it is done and imported nowhere else: it is heavy. It yields what it has to say."""
    arguments: tuple[Any, ...]

    def do(self) -> Iterator[Any]:
        """Do it, here."""
        said: Iterator[Any] = pkgutil.resolve_name(self.function)(*self.arguments)
        return said
