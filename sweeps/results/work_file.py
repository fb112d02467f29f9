"""`work.json`: what a sweep computed and what it saved, as it is kept in the run folder and said in one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from sweeps.ledger.folder import RunFolder
from sweeps.results.work import Account, Work
from training.config import TargetBlocks, TargetModules
from training.files import write_json
from training.passes import AdapterKind, Pass, PassPart

METHOD_NAMES = {"lora": "LoRA", "dreambooth": "DreamBooth"}

WORTH_SAYING = 1.05
"""Below, a ratio reads as 1.0 times less, or as more."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Samples(_Section):
    """Samples through each module; the backward ones are among the forward ones."""

    unet_forward: int
    unet_backward: int
    vae_encode: int
    vae_decode: int
    text_encoder_forward: int
    text_encoder_backward: int
    controlnet_forward: int


class CountedWork(_Section):
    """One way to do the sweep's work."""

    runs: int
    steps: dict[str, int]
    """Method -> optimizer steps."""
    pictures: dict[str, int]
    """What for -> pictures."""
    samples: Samples
    flops: dict[str, int] | None
    """What for -> FLOPs, `total` among them; None where the base model's configs were not at hand."""


class Cost(_Section):
    """What one sample of a kind costs; the fields but the last are those of `Pass`."""

    part: PassPart
    width: int | None
    height: int | None
    rank: int | None
    trains: bool
    gradient_checkpointing: bool
    target_modules: TargetModules = "attention"
    target_blocks: TargetBlocks = "all"
    adapter: AdapterKind = "lora"
    flops: int

    @property
    def kind(self) -> Pass:
        """What it is the cost of."""
        return Pass(**self.model_dump(exclude={"flops"}))


class WorkFile(_Section):
    """What `work.json` holds."""

    computed: CountedWork
    separate_runs: CountedWork
    to_the_end: CountedWork
    separate_runs_to_the_end: CountedWork
    seconds: dict[str, float]
    """Stage -> seconds of the clock."""
    costs: tuple[Cost, ...] = ()
    """By which FLOPs were added up; none where they are not known."""

    def times_less(self) -> float | None:
        """How many times less than separate runs was computed, in FLOPs."""
        return _times(self.separate_runs, self.computed)

    def line(self) -> str:
        """One sentence for people."""
        steps = [
            f"{self.computed.steps.get(method, 0):,} of {self.separate_runs.steps[method]:,} {name} steps"
            for method, name in METHOD_NAMES.items()
            if method in self.separate_runs.steps
        ]
        parts = [" and ".join(steps)] if steps else []
        times = self.times_less()
        if times is not None and times >= WORTH_SAYING:
            parts.append(f"{times:.1f} times less work than separate runs")
        full_grid = _times(self.separate_runs_to_the_end, self.computed)
        if full_grid is not None and full_grid >= WORTH_SAYING and self.separate_runs_to_the_end != self.separate_runs:
            parts.append(f"{full_grid:.1f} times less than separate runs of all trials to their ends")
        return ", ".join(parts)


def _times(more: CountedWork, less: CountedWork) -> float | None:
    if more.flops is None or less.flops is None or not less.flops["total"]:
        return None
    return more.flops["total"] / less.flops["total"]


def work_file(account: Account, flops: Mapping[Pass, int] | None, seconds: Mapping[str, float]) -> WorkFile:
    """An account as it is written down.

    Args:
        account: the sweep's.
        flops: of a sample of each kind in it, where they are known.
        seconds: stage -> seconds.
    """
    return WorkFile(
        computed=_counted(account.computed, flops),
        separate_runs=_counted(account.separate_runs, flops),
        to_the_end=_counted(account.to_the_end, flops),
        separate_runs_to_the_end=_counted(account.separate_runs_to_the_end, flops),
        seconds={stage: round(number, 3) for stage, number in seconds.items()},
        costs=() if flops is None else _costs(account, flops),
    )


def _costs(account: Account, flops: Mapping[Pass, int]) -> tuple[Cost, ...]:
    costs = [Cost(**asdict(kind), flops=flops[kind]) for kind in account.kinds]
    return tuple(sorted(costs, key=lambda cost: (cost.part, cost.flops, repr(cost.kind))))


def _counted(work: Work, flops: Mapping[Pass, int] | None) -> CountedWork:
    forward, backward, by_stage = Counter[str](), Counter[str](), Counter[str]()
    for (stage, kind), number in work.passes.items():
        forward[kind.part] += number
        backward[kind.part] += number if kind.trains else 0
        by_stage[stage] += 0 if flops is None else number * flops[kind]
    return CountedWork(
        runs=work.runs,
        steps=dict(work.steps),
        pictures={str(stage): number for stage, number in work.pictures.items()},
        samples=Samples(
            unet_forward=forward["unet"],
            unet_backward=backward["unet"],
            vae_encode=forward["vae_encoder"],
            vae_decode=forward["vae_decoder"],
            text_encoder_forward=forward["text_encoder"],
            text_encoder_backward=backward["text_encoder"],
            controlnet_forward=forward["controlnet"],
        ),
        flops=None if flops is None else {**by_stage, "total": by_stage.total()},
    )


def write_work(folder: RunFolder, work: WorkFile) -> Path:
    """Write RUN/work.json. It is derived: nothing but the report reads it back."""
    write_json(folder.work_json, work.model_dump(mode="json"))
    return folder.work_json


def read_work(folder: RunFolder) -> WorkFile | None:
    """What the last run wrote; None where there is nothing whole."""
    try:
        return WorkFile.model_validate_json(folder.work_json.read_bytes())
    except (OSError, ValidationError):
        return None
