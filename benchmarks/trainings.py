"""What the benchmarks train: base models, datasets and LoRAs, alone or in a pack."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from tests.tiny_models import build_pipeline
from training.config import LoraConfig, MixedPrecision, SubjectConfig
from training.dataset import Dataset, Latents, encode_dataset, load_dataset
from training.methods import TrainedModules
from training.pack import Member, Pack, start_pack, take_pack_step
from training.preparation import prepare_photos
from training.step import TrainingRun, apply_gradients
from training.train import _forward_and_backward

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "examples" / "demo"
PROMPT = "photo of sks person"
CPU = torch.device("cpu")


def demo_dataset(folder: Path) -> Dataset:
    """The demo's photos, encoded by the demo's family: a trained UNet of 5.5 million weights, latents of 16x16."""
    subject = SubjectConfig(photos=DEMO / "photos", instance_prompt=PROMPT, resolution=64, crop="center")
    prepare_photos(subject, folder)
    encode_dataset(folder, str(DEMO / "family" / "base_model"), device=CPU)
    return load_dataset(folder)


def small_dataset(folder: Path) -> Dataset:
    """Latents of 8x8 drawn at random, for a UNet of Stable Diffusion 1.5's layout and of few and random weights.

    So little is computed in each of its layers that the calls cost more than the arithmetic, as on a GPU at batch 1.
    """
    return random_dataset(build_pipeline(folder / "small"), side=8)


def random_dataset(base_model: Path, side: int, num_photos: int = 12) -> Dataset:
    """Photos that nobody took: their latents are drawn at random."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(num_photos, 4, side, side, generator=generator)
    return Dataset(
        dir=base_model,
        base_model=str(base_model),
        instance_prompt=PROMPT,
        class_prompt=None,
        prompts=(PROMPT,) * num_photos,
        repeats=(1,) * num_photos,
        latents=Latents(mean, torch.full_like(mean, 0.1)),
        flipped_latents=None,
        class_latents=None,
    )


def loras(
    ranks: Sequence[int], batch_size: int, mixed_precision: MixedPrecision = "no", learning_rate: float = 1e-4
) -> list[LoraConfig]:
    """One training of each rank, with a seed of its own."""
    return [
        LoraConfig(
            rank=rank,
            seed=seed,
            learning_rate=learning_rate,
            train_batch_size=batch_size,
            mixed_precision=mixed_precision,
            max_train_steps=10**6,
        )
        for seed, rank in enumerate(ranks)
    ]


def take_step_alone(run: TrainingRun[TrainedModules]) -> None:
    """One optimizer step as `training.train` takes it; what it writes down of it is left out, as in a pack's."""
    for micro_step in run.micro_steps:
        _forward_and_backward(run, micro_step)
    apply_gradients(run)


def packed(configs: Sequence[LoraConfig], dataset: Dataset, device: torch.device) -> Pack:
    """A pack of these before its first step."""
    return start_pack([Member.of(config, dataset, None) for config in configs], dataset, device)


def take_steps_alone(runs: Sequence[TrainingRun[TrainedModules]], trial_steps: int) -> int:
    """So many steps, by each of the runs in turn; returns their number."""
    for number in range(trial_steps):
        take_step_alone(runs[number % len(runs)])
    return trial_steps


def take_steps_packed(pack: Pack, trial_steps: int) -> int:
    """So many steps, all runs' together; returns their number, at least one step of each."""
    steps = max(1, trial_steps // len(pack.runs))
    for _ in range(steps):
        take_pack_step(pack)
    return steps * len(pack.runs)
