"""Trial-steps a second on one GPU: LoRA trainings packed, one alone, and K processes that share the card.

    python benchmarks/gpu.py              a GPU of 80 GB or more, 5 GB of host memory a process; no Ray, no download
    python benchmarks/gpu.py --smoke      the same code on a CPU with a small model, for nobody's figures

A UNet of Stable Diffusion 1.5's shapes and random weights, latents of 512 px pictures drawn at random, bf16 as training
does it (base model in bf16, adapters in float32, autocast), batch 1, ranks from 2 to 64.

- alone: `training.train`'s own step, eager, one training of rank 16.
- packed: `training.pack.take_pack_step` with K trainings. It takes turns with alone in one process; times faster is the
  median of the ratios of adjacent turns, with the least and the greatest.
- processes: K processes, each with one training alone and a copy of the base model, which start each turn together. The
  card divides its time among them; nothing here starts MPS. Times faster is against the median of alone.

The clock is the wall's, read when the card has done what it was asked. Memory is the card's, contexts and cached blocks
included. TFLOP/s are the 1.725 TFLOP that a step of rank 16 needs (forward and backward, by layer shapes), at any rank
and without what padding to the widest rank adds; the share is of `--peak-tflops`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from diffusers import UNet2DConditionModel
from torch import multiprocessing
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.alternating import alternate, spread, table
from benchmarks.trainings import loras, packed, random_dataset, take_steps_alone, take_steps_packed
from tests.tiny_models import build_pipeline
from training.dataset import Dataset
from training.step import start_run
from training.train import free_memory

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue
    from multiprocessing.synchronize import Barrier

TFLOP_A_STEP = 1.725
HEADER = ("", "K", "trial-steps/s", "times faster: median (range)", "memory, GB", "TFLOP/s", "share of peak")


@dataclass(frozen=True)
class Setting:
    """What is measured on what."""

    device: torch.device
    base_model: Path
    side: int
    """Of the latents."""
    rounds: int
    steps: int
    """Trial-steps of each training in a turn."""
    peak_tflops: float

    def dataset(self) -> Dataset:
        """Random latents; the same in every process."""
        return random_dataset(self.base_model, self.side)

    def clock(self) -> float:
        """Seconds of the wall, when the device has nothing left to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def memory(self) -> float:
        """Bytes of the card that are taken, by whomever; on a CPU none."""
        if self.device.type != "cuda":
            return 0.0
        free, total = torch.cuda.mem_get_info(self.device)
        return float(total - free)

    def row(
        self, what: str, trainings: int, seconds: Sequence[float], ratios: Sequence[float], memory: float
    ) -> list[str]:
        """Of the table; `seconds` a trial-step, all trainings together."""
        rate = 1 / median(seconds)
        tflops = rate * TFLOP_A_STEP
        on_gpu = self.device.type == "cuda"
        return [
            what,
            str(trainings),
            f"{rate:.1f}",
            spread(ratios),
            f"{memory / 2**30:.1f}" if on_gpu else "-",
            f"{tflops:.0f}" if on_gpu else "-",
            f"{tflops / self.peak_tflops:.1%}" if on_gpu else "-",
        ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="on a CPU, a small model, one round of two steps")
    parser.add_argument("--packs", nargs="+", type=int, default=[1, 4, 8, 16], metavar="K")
    parser.add_argument("--processes", nargs="*", type=int, default=[2, 4, 8, 16], metavar="K")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="of each training in a turn")
    parser.add_argument("--peak-tflops", type=float, default=790.0, help="default: an H200's in bf16")
    options = parser.parse_args(arguments)
    if not options.smoke and not torch.cuda.is_available():
        parser.error("needs a GPU; --smoke runs on a CPU")
    if options.smoke:
        torch.set_num_threads(1)
    device = torch.device("cpu" if options.smoke else "cuda:0")
    rounds, steps = (1, 2) if options.smoke else (options.rounds, options.steps)
    with TemporaryDirectory() as folder:
        base_model = build_pipeline(Path(folder) / "base")
        if not options.smoke:
            give_shapes_of_sd15(base_model, device)
        setting = Setting(device, base_model, 8 if options.smoke else 64, rounds, steps, options.peak_tflops)
        # First, while this process holds next to nothing of the card.
        shared = {count: measure_processes(setting, count) for count in options.processes}
        alone, rows = measure_packs(setting, options.packs)
    rows += [
        setting.row("processes", count, seconds, [median(alone) / each for each in seconds], memory)
        for count, (seconds, memory) in shared.items()
    ]
    print(table(HEADER, rows))


def give_shapes_of_sd15(base_model: Path, device: torch.device) -> None:
    """Put Stable Diffusion 1.5's UNet, and a text encoder as wide as its own, into a small pipeline's folder."""
    with device:
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408,
                hidden_size=768,
                projection_dim=768,
                intermediate_size=768,
                num_attention_heads=12,
                num_hidden_layers=1,
                bos_token_id=49406,
                eos_token_id=49407,
                pad_token_id=1,
            )
        )
    assert unet.num_parameters() == 859_520_964, "the UNet that the FLOPs of a step were counted for"
    unet.save_pretrained(base_model / "unet")
    text_encoder.save_pretrained(base_model / "text_encoder")
    del unet, text_encoder
    free_memory(device)


def ranks_of(trainings: int) -> list[int]:
    """From 2 to 64 by equal factors; 16 for one training."""
    if trainings == 1:
        return [16]
    return [round(2 ** (1 + 5 * number / (trainings - 1))) for number in range(trainings)]


def measure_packs(setting: Setting, packs: Sequence[int]) -> tuple[list[float], list[list[str]]]:
    """Seconds of a step alone, all turns together, and a row of the table for it and for each pack."""
    dataset = setting.dataset()
    (config,) = loras(ranks_of(1), 1, "bf16")
    run = start_run(config, dataset, setting.device)
    alone_turn = partial(take_steps_alone, [run], setting.steps)
    alone_turn()
    alone_memory = setting.memory()
    alone: list[float] = []
    rows = []
    for trainings in packs:
        free_memory(setting.device)
        pack = packed(loras(ranks_of(trainings), 1, "bf16"), dataset, setting.device)
        pack_turn = partial(take_steps_packed, pack, setting.steps * trainings)
        comparison = alternate(alone_turn, pack_turn, setting.rounds, setting.clock)
        alone += comparison.reference
        rows.append(setting.row("packed", trainings, comparison.other, comparison.ratios, setting.memory()))
        del pack, pack_turn
    ratios = [median(alone) / seconds for seconds in alone]
    return alone, [setting.row("alone", 1, alone, ratios, alone_memory), *rows]


def measure_processes(setting: Setting, count: int) -> tuple[list[float], float]:
    """Seconds a trial-step of so many processes together, round by round, and what they take of the card."""
    spawn = multiprocessing.get_context("spawn")
    barrier, answers = spawn.Barrier(count), spawn.SimpleQueue()
    multiprocessing.start_processes(  # type: ignore[attr-defined, no-untyped-call]
        share_card, (setting, barrier, answers), nprocs=count, start_method="spawn"
    )
    turns, memory = answers.get()
    return [seconds / (count * setting.steps) for seconds in turns], memory


def share_card(
    number: int, setting: Setting, barrier: Barrier, answers: SimpleQueue[tuple[list[float], float]]
) -> None:
    """One of the processes; the first tells how long all of them took in each turn."""
    torch.set_num_threads(1)
    config = loras(ranks_of(barrier.parties), 1, "bf16")[number]
    run = start_run(config, setting.dataset(), setting.device)
    turn: Callable[[], int] = partial(take_steps_alone, [run], setting.steps)
    turn()
    turns = []
    for _ in range(setting.rounds):
        setting.clock()
        barrier.wait()
        start = time.perf_counter()
        turn()
        setting.clock()
        barrier.wait()
        turns.append(time.perf_counter() - start)
    if number == 0:
        answers.put((turns, setting.memory()))
    barrier.wait()  # they all stay until the card has been looked at


if __name__ == "__main__":
    main()
