"""CPU time of a step: `training.train` against diffusers' own example scripts, and against itself with an option.

    OMP_NUM_THREADS=1 python benchmarks/loop.py --upstream DIFFUSERS/examples/dreambooth        five minutes
    OMP_NUM_THREADS=1 python benchmarks/loop.py --options fused_adam channels_last          four minutes

The folder holds `train_dreambooth_lora.py` and `train_dreambooth.py` of a diffusers that is no newer than the one that
is installed. Same base model (the demo's family), photos, rank, learning rate and precision; what each does in a step
counts whole: upstream reads and encodes the photo anew, `train` has its latents and writes a line of statistics.

Each turn is a process of its own, for upstream's script is one; turns alternate, on one thread. The CPU clock of the
process is read after every optimizer step, by a hook that torch offers, and start-up and the first steps are left out.
A ratio is of two adjacent turns, of each the mean of its steps; the table has the median of the rounds' ratios.

Options are compared in one process, by turns of `--steps` steps of a training without the option and one with it;
what is written down of a step is left out of both. Its table also has the wall time of either's first step, which of
`compile` is the compiling.
"""

from __future__ import annotations

import argparse
import runpy
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.alternating import Comparison, alternate, milliseconds, spread, table
from benchmarks.trainings import CPU, DEMO, PROMPT, demo_dataset, take_step_alone, take_steps_alone
from training.config import DreamBoothConfig, LoraConfig
from training.dataset import Dataset, load_dataset
from training.step import start_run
from training.train import train

SCRIPTS = {"lora": "train_dreambooth_lora.py", "dreambooth": "train_dreambooth.py"}
SETTINGS = (("lora", 1), ("lora", 4), ("dreambooth", 1))
"""Method and batch."""
LEARNING_RATE, RANK = 1e-4, 4
HEADER = ("method", "batch", "upstream, ms a step", "training.train, ms a step", "times less: median (range)")
OPTIONS = ("fused_adam", "channels_last", "compile")
OPTIONS_HEADER = (
    *("option", "method", "batch", "without, ms a step", "with, ms a step", "times less: median (range)"),
    "first step without and with, s",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    compared = parser.add_mutually_exclusive_group(required=True)
    compared.add_argument("--upstream", type=Path, metavar="FOLDER", help="of upstream's two scripts")
    compared.add_argument("--options", nargs="+", choices=OPTIONS, help="of the training step, each by itself")
    parser.add_argument("--settings", nargs="+", default=[f"{method}x{size}" for method, size in SETTINGS])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30, help="that count")
    parser.add_argument("--steps-before", type=int, default=5, help="that do not")
    parser.add_argument("--turn", nargs=4, metavar=("WHOSE", "METHOD", "BATCH", "WORK"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.turn:
        whose, method, batch_size, work = options.turn
        take_turn(whose, method, int(batch_size), options.upstream, Path(work), options.steps, options.steps_before)
        return
    rows = []
    settings = [(method, int(size)) for method, _, size in (setting.partition("x") for setting in options.settings)]
    with TemporaryDirectory() as work:
        dataset = demo_dataset(Path(work) / "dataset")
        if options.options:
            rows = [
                [option, method, str(batch_size), *measured(option, method, batch_size, dataset, options)]
                for option in options.options
                for method, batch_size in settings
            ]
            print(table(OPTIONS_HEADER, rows))
            return
        for method, batch_size in settings:
            comparison = Comparison([], [])
            sides = [("upstream", comparison.reference), ("ours", comparison.other)]
            for _ in range(options.rounds):
                for whose, seconds in sides:
                    seconds.append(seconds_a_step(whose, method, batch_size, options, work))
                sides.reverse()
            rows.append(
                [
                    method,
                    str(batch_size),
                    milliseconds(comparison.reference),
                    milliseconds(comparison.other),
                    spread(comparison.ratios),
                ]
            )
    print(table(HEADER, rows))


def measured(option: str, method: str, batch_size: int, dataset: Dataset, options: argparse.Namespace) -> list[str]:
    """The rest of a row: two trainings of one process by turns, the second with the option."""
    plain = start_run(config_of(method, batch_size, 10**6), dataset, CPU)
    changed = start_run(config_of(method, batch_size, 10**6, **{option: True}), dataset, CPU)
    first_steps = []
    for run in (plain, changed):
        start = time.perf_counter()
        take_step_alone(run)
        first_steps.append(f"{time.perf_counter() - start:.1f}")
    comparison = alternate(
        partial(take_steps_alone, [plain], options.steps),
        partial(take_steps_alone, [changed], options.steps),
        options.rounds,
    )
    torch.compiler.reset()
    return [
        milliseconds(comparison.reference),
        milliseconds(comparison.other),
        spread(comparison.ratios),
        " and ".join(first_steps),
    ]


def seconds_a_step(whose: str, method: str, batch_size: int, options: argparse.Namespace, work: str) -> float:
    """A turn in a process of its own; its last line says what a step took."""
    command = [sys.executable, __file__, "--upstream", str(options.upstream)]
    command += ["--steps", str(options.steps), "--steps-before", str(options.steps_before)]
    turn = subprocess.run(
        [*command, "--turn", whose, method, str(batch_size), work], capture_output=True, text=True, check=False
    )
    if turn.returncode:
        raise SystemExit(f"{whose}, {method}, batch {batch_size}:\n{turn.stderr[-2000:]}")
    return float(turn.stdout.split()[-1])


def take_turn(
    whose: str, method: str, batch_size: int, upstream: Path, work: Path, steps: int, steps_before: int
) -> None:
    """Train, and print the CPU seconds of a step."""
    clock: list[float] = []
    register_optimizer_step_post_hook(partial(_note, clock))
    with TemporaryDirectory() as out_dir:
        if whose == "ours":
            train_ours(method, batch_size, work / "dataset", Path(out_dir), steps + steps_before)
        else:
            run_upstream(upstream / SCRIPTS[method], method, batch_size, Path(out_dir), steps + steps_before)
    assert len(clock) == steps + steps_before, "a step of the training is one of the optimizer"
    print((clock[-1] - clock[steps_before - 1]) / steps)


def train_ours(method: str, batch_size: int, dataset_dir: Path, out_dir: Path, steps: int) -> None:
    """As a trial of a sweep does."""
    config = config_of(method, batch_size, steps)
    for _ in train(config, load_dataset(dataset_dir), (), out_dir=out_dir, device=CPU):
        pass


def config_of(method: str, batch_size: int, steps: int, **more: bool) -> LoraConfig | DreamBoothConfig:
    """What is trained."""
    shared: dict[str, Any] = {
        "learning_rate": LEARNING_RATE,
        "train_batch_size": batch_size,
        "max_train_steps": steps,
        **more,
    }
    return LoraConfig(rank=RANK, **shared) if method == "lora" else DreamBoothConfig(**shared)


def run_upstream(script: Path, method: str, batch_size: int, out_dir: Path, steps: int) -> None:
    """As `python train_dreambooth_lora.py ...` does."""
    sys.argv = [
        str(script),
        f"--pretrained_model_name_or_path={DEMO / 'family' / 'base_model'}",
        f"--instance_data_dir={DEMO / 'photos'}",
        f"--instance_prompt={PROMPT}",
        f"--output_dir={out_dir}",
        "--resolution=64",
        "--center_crop",
        f"--train_batch_size={batch_size}",
        f"--learning_rate={LEARNING_RATE}",
        "--lr_scheduler=constant",
        "--lr_warmup_steps=0",
        f"--max_train_steps={steps}",
        "--mixed_precision=no",
        "--seed=0",
        *([f"--rank={RANK}"] if method == "lora" else []),
    ]
    runpy.run_path(str(script), run_name="__main__")


def _note(clock: list[float], *_: object) -> None:
    clock.append(time.process_time())


if __name__ == "__main__":
    main()
