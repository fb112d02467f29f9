"""Memory of K LoRA trainings: packed in one process, and each in a process of its own.

    OMP_NUM_THREADS=1 python benchmarks/memory.py        two minutes; Linux

Each process is a new one. It loads the demo's family, takes its steps and then waits, so that all are there at once
when they are looked at, though they trained one after the other. Of each, and summed over processes:

- peak: the most that was resident (`ru_maxrss`). Pages of files that several processes have mapped, torch's libraries
  above all, count once in every one, so a sum of peaks is more than the machine ever held.
- PSS after the steps: such a page is divided among the processes that have it mapped, whoever's they are; the sum is
  what the machine holds, less what other people's processes share of it.
- private after the steps: pages that no other process has; what one process more costs.
- of it before the training: private too, when base model and photos are loaded and nothing has been trained.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.alternating import table
from benchmarks.packed import RANKS
from benchmarks.trainings import CPU, demo_dataset, loras, packed, take_steps_alone, take_steps_packed
from training.dataset import load_dataset
from training.stable_diffusion import frozen_module
from training.stats import peak_resident_bytes
from training.step import start_run

HEADER = ("", "processes", "peak, MB", "PSS, MB", "private, MB", "of it before the training, MB")


@dataclass(frozen=True)
class Memory:
    """Of one process or several, in bytes."""

    peak: float
    pss: float
    private: float
    private_before: float

    @classmethod
    def together(cls, memories: Sequence[Memory]) -> Memory:
        """The sum."""
        return cls(*map(sum, zip(*map(astuple, memories), strict=True)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainings", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--train", nargs="+", type=int, metavar="RANK", help=argparse.SUPPRESS)
    parser.add_argument("--dataset", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.train:
        train_and_wait(options.train, options.dataset, options.steps)
        return
    ranks = [RANKS[number % len(RANKS)] for number in range(options.trainings)]
    with TemporaryDirectory() as folder:
        demo_dataset(Path(folder))
        together = memory_of([ranks], Path(folder), options.steps)
        alone = memory_of([[rank] for rank in ranks], Path(folder), options.steps)
    parts = [one / other for one, other in zip(astuple(together), astuple(alone), strict=True)]
    print(
        table(
            HEADER,
            [
                [f"{len(ranks)} alone", str(len(ranks)), *_megabytes(alone)],
                [f"{len(ranks)} packed", "1", *_megabytes(together)],
                ["packed / alone", "", *(f"{part:.2f}" for part in parts)],
            ],
        )
    )


def memory_of(trainings: Sequence[Sequence[int]], dataset: Path, steps: int) -> Memory:
    """The sum over processes that are all there at once; each trains LoRAs of its ranks."""
    processes = []
    try:
        private_before, peaks = [], []
        for ranks in trainings:
            process = _start(ranks, dataset, steps)
            processes.append(process)
            assert process.stdout is not None
            before, peak = process.stdout.readline().split()
            private_before.append(float(before))
            peaks.append(float(peak))
        return Memory.together(
            [
                Memory(peak, *rollup(process.pid), before)
                for process, before, peak in zip(processes, private_before, peaks, strict=True)
            ]
        )
    finally:
        for process in processes:
            process.communicate()


def train_and_wait(ranks: Sequence[int], dataset_dir: Path, steps: int) -> None:
    """What each process does: train alone or packed, say what it needed, and stay until it has been looked at."""
    dataset = load_dataset(dataset_dir)
    frozen_module(dataset.base_model, "unet", CPU, torch.float32)
    _, before = rollup("self")
    if len(ranks) == 1:
        runs = [start_run(config, dataset, CPU) for config in loras(ranks, 1)]
        take_steps_alone(runs, steps)
    else:
        pack = packed(loras(ranks, 1), dataset, CPU)
        take_steps_packed(pack, steps * len(ranks))
    print(before, peak_resident_bytes(), flush=True)
    sys.stdin.read()


def rollup(process: int | str) -> tuple[float, float]:
    """PSS and private memory of a process in bytes, as Linux counts them."""
    kilobytes: dict[str, int] = {}
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]:
        name, number, _ = line.split()
        kilobytes[name.rstrip(":")] = int(number)
    return 1024 * kilobytes["Pss"], 1024 * (kilobytes["Private_Clean"] + kilobytes["Private_Dirty"])


def _start(ranks: Sequence[int], dataset: Path, steps: int) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--dataset", str(dataset), "--steps", str(steps)]
    return subprocess.Popen(
        [*command, "--train", *map(str, ranks)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _megabytes(memory: Memory) -> list[str]:
    return [f"{number / 2**20:,.0f}" for number in astuple(memory)]


if __name__ == "__main__":
    main()
