"""The processes of a shared training: each of two runs a list of trainings, one after the other, in one group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import distributed, multiprocessing

from training.checkpoint import latest_checkpoint
from training.config import DreamBoothConfig, LoraConfig
from training.dataset import load_dataset
from training.share import Share
from training.train import TrainingStopped, train

WORLD_SIZE = 2


@dataclass(frozen=True)
class Training:
    """What `train` is asked for in every process."""

    config: LoraConfig | DreamBoothConfig
    out_dir: Path
    at_steps: tuple[int, ...] = ()
    stop_at: int | None = None
    """Go on from what lies in `out_dir`; at this step the first process is told to stop."""


def train_in_two_processes(trainings: Sequence[Training], dataset_dir: Path, rendezvous: Path) -> None:
    """Return when both have ended."""
    multiprocessing.set_forkserver_preload([__name__])  # what both load is loaded once
    multiprocessing.start_processes(
        _train_share, (list(trainings), dataset_dir, rendezvous), nprocs=WORLD_SIZE, start_method="forkserver"
    )


def _train_share(rank: int, trainings: list[Training], dataset_dir: Path, rendezvous: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=WORLD_SIZE)
    for training in trainings:
        run_training(training, dataset_dir, Share(rank, WORLD_SIZE))
        distributed.barrier()  # the next one may go on from what the first process has written
    distributed.destroy_process_group()


def run_training(training: Training, dataset_dir: Path, share: Share) -> None:
    """Train to the end, or to where it is told to stop."""
    steps: list[int] = []
    checkpoints = train(
        training.config,
        load_dataset(dataset_dir),
        training.at_steps,
        latest_checkpoint(training.out_dir),
        out_dir=training.out_dir,
        device="cpu",
        on_step=lambda step, _: steps.append(step),
        should_stop=lambda: steps[-1] == training.stop_at,
        share=share,
    )
    try:
        for _ in checkpoints:
            pass
    except TrainingStopped:
        assert steps[-1] == training.stop_at
