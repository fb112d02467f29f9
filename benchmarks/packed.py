"""CPU time of a LoRA training's step: alone, and in a pack of K.

    OMP_NUM_THREADS=1 python benchmarks/packed.py        some three minutes

Alone is what `training.train` does in a step: peft's layers, torch's AdamW, random numbers, loss, backward, clipping.
Packed is `training.pack.take_pack_step`, whose AdamW is fused. Neither writes down what it did. Both are timed in one
process by turns of equally many trial-steps on one thread, by `time.process_time`; a ratio is of two adjacent turns,
and the table has the median of the rounds' ratios with the least and the greatest. Trainings alone take turns at ranks
4 and 8; a pack has the first K of 4, 4, 8, 8, 4, 8, 4, 8.

Two base models: the demo's family, and one so small that calls cost more than arithmetic (`benchmarks/trainings.py`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.alternating import alternate, milliseconds, spread, table
from benchmarks.trainings import (
    CPU,
    demo_dataset,
    loras,
    packed,
    small_dataset,
    take_steps_alone,
    take_steps_packed,
)
from training.dataset import Dataset
from training.step import start_run

RANKS = (4, 4, 8, 8, 4, 8, 4, 8)
SETTINGS = ("1x1", "4x1", "8x1", "4x4")
"""K and batch."""
BASES = {"demo": demo_dataset, "small": small_dataset}
HEADER = ("base", "batch", "K", "alone, ms a trial-step", "packed, ms a trial-step", "times less: median (range)")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", nargs="+", choices=BASES, default=list(BASES))
    parser.add_argument("--settings", nargs="+", default=SETTINGS, metavar="KxBATCH")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--trial-steps", type=int, default=16, help="of a turn")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    with TemporaryDirectory() as folder:
        for base in options.bases:
            dataset = BASES[base](Path(folder))
            rows += [
                [base, *measured(dataset, setting, options.rounds, options.trial_steps)] for setting in options.settings
            ]
    print(table(HEADER, rows))


def measured(dataset: Dataset, setting: str, rounds: int, trial_steps: int) -> list[str]:
    """The rest of a row."""
    trainings, batch_size = map(int, setting.split("x"))
    alone = [start_run(config, dataset, CPU) for config in loras((4, 8), batch_size)]
    pack = packed(loras(RANKS[:trainings], batch_size), dataset, CPU)
    comparison = alternate(
        partial(take_steps_alone, alone, trial_steps), partial(take_steps_packed, pack, trial_steps), rounds
    )
    return [
        str(batch_size),
        str(trainings),
        milliseconds(comparison.reference),
        milliseconds(comparison.other),
        spread(comparison.ratios),
    ]


if __name__ == "__main__":
    main()
