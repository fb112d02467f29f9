"""How long a step and a picture take: published figures, or what an earlier run measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sweeps.clusters.machine import Gpu
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.records import TrialRecord
from training.errors import UserError
from training.names import shown
from training.stats import STATS_FILE, read_stats

T4_ITERATIONS, A100_ITERATIONS = 6.90, 21.66
"""Of a picture of 512 px a second, in half precision: diffusers' torch 2.0 benchmark, batch 1, not compiled."""
SAMPLER_STEPS = 25
"""Of the sampler that scores."""
T4_LORA_SECONDS, T4_DREAMBOOTH_SECONDS = 1.04, 2.64
"""A step at batch 1 and 512 px in full precision; DreamBooth's with prior preservation and the text encoder: the
reference experiment on a Tesla T4 (examples/homework.yaml)."""
AS_FAST_AS_AN_A100 = ("A100", "A800", "H100", "H800", "H200", "GH200", "B200", "GB200")


@dataclass(frozen=True)
class Speed:
    """Seconds of one GPU, or of the machine that it was measured on."""

    lora_step: float
    dreambooth_step: float
    picture: float
    source: str
    """Where these come from, for the file's comment."""

    def step(self, method: str) -> float:
        """Seconds a step of this method."""
        return self.lora_step if method == "lora" else self.dreambooth_step

    @property
    def text(self) -> str:
        """For people."""
        return (
            f"{self.lora_step:.3g} s a LoRA step, {self.dreambooth_step:.3g} s a DreamBooth step, "
            f"{self.picture:.3g} s a picture: {self.source}"
        )


TESLA_T4 = Speed(
    T4_LORA_SECONDS,
    T4_DREAMBOOTH_SECONDS,
    SAMPLER_STEPS / T4_ITERATIONS,
    "published for a Tesla T4 (the reference experiment; diffusers' torch 2.0 benchmark)",
)
A100 = Speed(
    T4_LORA_SECONDS * T4_ITERATIONS / A100_ITERATIONS,
    T4_DREAMBOOTH_SECONDS * T4_ITERATIONS / A100_ITERATIONS,
    SAMPLER_STEPS / A100_ITERATIONS,
    "pictures as published for an A100 (diffusers' torch 2.0 benchmark), steps of a Tesla T4 made faster alike",
)


def published_speed(gpus: Sequence[Gpu]) -> Speed:
    """Of an A100 where the GPU is one or newer of its class, of a Tesla T4 otherwise, which most are faster than."""
    is_fast = bool(gpus) and all(any(name in gpu.name for name in AS_FAST_AS_AN_A100) for gpu in gpus)
    return A100 if is_fast else TESLA_T4


def speed_of_run(run_dir: Path) -> Speed:
    """What trials of a run took, on whatever they ran.

    A trial's seconds beyond its steps are its pictures' and their scoring's. Of a method that the run has not, a step
    is taken to be as much slower or faster as it was on the T4.

    Raises:
        UserError: it is no run folder, or has no scored trial with its steps written down.
    """
    if not run_dir.is_dir():
        raise UserError(f"--speed-of: no such run folder: {shown(run_dir)}")
    folder = RunFolder(run_dir)
    steps: dict[str, list[float]] = {"lora": [], "dreambooth": []}
    beyond, num_pictures = 0.0, 0
    for record in folder.trials():
        taken = [stats.seconds for stats in read_stats(folder.trial_dir(record.trial) / STATS_FILE)]
        if not taken or not record.checkpoints:
            continue
        steps[record.method] += taken
        beyond += max(0.0, record.seconds - sum(taken))
        num_pictures += _num_pictures(record)
    means = {method: sum(each) / len(each) for method, each in steps.items() if each}
    if not means or not num_pictures:
        raise UserError(
            f"--speed-of: needs a run with scored trials and their stats.jsonl, got none in {shown(run_dir)}"
        )
    ratio = T4_DREAMBOOTH_SECONDS / T4_LORA_SECONDS
    lora = means["lora"] if "lora" in means else means["dreambooth"] / ratio
    dreambooth = means.get("dreambooth", lora * ratio)
    return Speed(lora, dreambooth, beyond / num_pictures, f"measured in {shown(run_dir.name)}")


def _num_pictures(record: TrialRecord) -> int:
    return sum(checkpoint.num_images for checkpoint in record.checkpoints)
