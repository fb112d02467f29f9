"""A line a step: what happened, each step once, whatever kills the training in between."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import training.journal
import training.train
from tests.training.conftest import NUM_CLASS_IMAGES
from training.checkpoint import Checkpoint, latest_checkpoint
from training.config import DreamBoothConfig, LoraConfig
from training.dataset import Dataset
from training.stats import StatsWriter, StepStats, peak_resident_bytes, read_newest, read_stats
from training.step import TrainingRun, apply_gradients, micro_step_inputs, micro_step_loss, start_run
from training.train import train

LORA = LoraConfig(
    rank=2,
    lora_dropout=0.1,
    learning_rate=1e-3,
    max_train_steps=4,
    train_batch_size=1,
    gradient_accumulation_steps=2,
    train_text_encoder=True,
    seed=5,
)
DREAMBOOTH = DreamBoothConfig(
    learning_rate=1e-4,
    max_train_steps=4,
    train_batch_size=1,
    with_prior_preservation=True,
    num_class_images=NUM_CLASS_IMAGES,
    lr_scheduler="linear",
    lr_warmup_steps=2,
    seed=6,
)
BOTH = pytest.mark.parametrize("config", [LORA, DREAMBOOTH], ids=["lora", "dreambooth"])


def stats_of(*steps: int, seconds: float = 0.5) -> list[StepStats]:
    """Made up stats of these steps."""
    return [
        StepStats(
            step=step,
            loss=0.1 / step,
            learning_rate=1e-4,
            gradient_norm=1 / 3,
            seconds=seconds,
            peak_memory_bytes=2**30,
        )
        for step in steps
    ]


def write(path: Path, *steps: int) -> None:
    writer = StatsWriter(path, 0)
    for stats in stats_of(*steps):
        writer.append(stats)
    writer.close()


def but_for_machine(path: Path) -> list[dict[str, object]]:
    """All that a run's config determines."""
    return [stats.model_dump(exclude={"seconds", "peak_memory_bytes"}) for stats in read_stats(path)]


def last(checkpoints: Iterator[Checkpoint]) -> Checkpoint:
    *_, checkpoint = checkpoints
    return checkpoint


# --- the file --------------------------------------------------------------------------------------------------


def test_a_step_can_be_read_as_soon_as_it_is_appended(tmp_path: Path) -> None:
    """Every number to its last bit, while the writer goes on; before the file is there, there are no steps."""
    path = tmp_path / "stats.jsonl"
    assert read_stats(path) == []
    writer = StatsWriter(path, 0)
    written = stats_of(1, 2, 3)
    for number, stats in enumerate(written, 1):
        writer.append(stats)
        assert read_stats(path) == written[:number]
    writer.close()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_only_finite_numbers_are_written(number: float) -> None:
    """JSON has no others; a gradient norm that is not finite is None."""
    (stats,) = stats_of(1)
    for name in ("loss", "learning_rate", "gradient_norm", "seconds"):
        with pytest.raises(ValidationError):
            StepStats(**stats.model_dump() | {name: number})
    assert StepStats(**stats.model_dump() | {"gradient_norm": None}).model_dump_json().count("null") == 1


def test_a_torn_last_line_is_passed_over_wherever_it_is_cut(tmp_path: Path) -> None:
    """As a reader meets it beside a running writer, and as a kill leaves it; so is what a power cut left unwritten."""
    path = tmp_path / "stats.jsonl"
    write(path, 1, 2)
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        assert read_stats(path) == stats_of(1)
    for unwritten in (b"\0" * 512, b"\0" * 512 + whole[start:], b"\xff\xfe\n"):
        path.write_bytes(whole + unwritten)
        assert read_stats(path) == stats_of(1, 2)


def test_going_on_keeps_the_steps_up_to_the_checkpoints_as_they_are(tmp_path: Path) -> None:
    """Later steps and a torn line go, earlier lines stay byte for byte, new ones follow; nothing is left beside it."""
    path = tmp_path / "stats.jsonl"
    write(path, 1, 2, 3, 4)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines) + lines[-1][:20])
    writer = StatsWriter(path, 2)
    assert path.read_bytes() == b"".join(lines[:2])
    (again,) = stats_of(3, seconds=9.0)
    writer.append(again)
    writer.close()
    assert read_stats(path) == [*stats_of(1, 2), again]
    assert [file.name for file in tmp_path.iterdir()] == ["stats.jsonl"]


def test_a_run_that_begins_replaces_an_abandoned_ones_steps(tmp_path: Path) -> None:
    """From step 0 nothing stays, and a writer that was given up for dead no longer reaches the file."""
    path = tmp_path / "stats.jsonl"
    abandoned = StatsWriter(path, 0)
    for stats in stats_of(1, 2, 3):
        abandoned.append(stats)
    writer = StatsWriter(path, 0)
    assert read_stats(path) == []
    (first,) = stats_of(1, seconds=9.0)
    writer.append(first)
    for stats in stats_of(4):
        abandoned.append(stats)
    abandoned.close()
    writer.close()
    assert read_stats(path) == [first]


def test_memory_is_counted_in_bytes() -> None:
    """The peak is no less than one tensor that is held now and no more than the machine has."""
    held = torch.ones(2**25)
    assert held.nbytes < peak_resident_bytes() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# --- training --------------------------------------------------------------------------------------------------


@BOTH
def test_stats_say_what_happened(config: LoraConfig | DreamBoothConfig, dataset: Dataset, tmp_path: Path) -> None:
    """Losses are those that `on_step` hears, rates the schedule's, the norm that of the gradients, seconds of now."""
    losses: dict[int, float] = {}
    start = time.perf_counter()
    last(train(config, dataset, [2], out_dir=tmp_path, device="cpu", on_step=losses.__setitem__))
    elapsed = time.perf_counter() - start
    stats = read_stats(tmp_path / "stats.jsonl")
    assert {step.step: step.loss for step in stats} == losses
    assert list(losses) == [1, 2, 3, 4]
    constant, linear = [1e-3] * 4, [0.0, 5e-5, 1e-4, 5e-5]  # linear: two steps up, then down to 0 after the last
    assert [step.learning_rate for step in stats] == pytest.approx(linear if config is DREAMBOOTH else constant)
    assert all(step.seconds > 0 for step in stats)
    assert sum(step.seconds for step in stats) < elapsed
    peaks = [step.peak_memory_bytes for step in stats]
    assert peaks[0] > 0
    assert peaks == sorted(peaks)
    assert all(step.gradient_norm is not None and step.gradient_norm > 0 for step in stats)

    plain = config.model_copy(update={"lora_dropout": 0.0, "max_grad_norm": 1e-6})
    last(train(plain, dataset, [], out_dir=tmp_path / "plain", device="cpu"))
    run = start_run(plain, dataset, torch.device("cpu"))
    loss = torch.stack([loss_at(run, micro_step) for micro_step in run.micro_steps]).mean()
    gradients = torch.autograd.grad(loss, run.weights.parameters())
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
    assert read_stats(tmp_path / "plain" / "stats.jsonl")[0].gradient_norm == pytest.approx(norm, rel=1e-4)


def loss_at(run: TrainingRun, micro_step: int) -> torch.Tensor:
    inputs = micro_step_inputs(run, micro_step)
    prediction = run.weights.unet(inputs.noisy_latents, inputs.timesteps, inputs.conditioning).sample
    return micro_step_loss(run, prediction, inputs)


def test_a_norm_that_is_not_finite_is_written_as_none(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a step that fp16's overflow made to be skipped; the step stands in the file all the same."""
    monkeypatch.setattr(training.train, "apply_gradients", lambda run: apply_gradients(run) * math.inf)
    next(train(LORA, dataset, [1], out_dir=tmp_path, device="cpu"))
    (stats,) = read_stats(tmp_path / "stats.jsonl")
    assert stats.gradient_norm is None


@BOTH
def test_resumed_stats_equal_uninterrupted_ones(
    config: LoraConfig | DreamBoothConfig, dataset: Dataset, tmp_path: Path
) -> None:
    """Stopped at every checkpoint and gone on: the same lines but for seconds and memory, each step once."""
    last(train(config, dataset, [1, 3], out_dir=tmp_path / "whole", device="cpu"))
    for _ in range(3):
        resume = latest_checkpoint(tmp_path / "pieces")
        checkpoints = train(config, dataset, [1, 3], resume, out_dir=tmp_path / "pieces", device="cpu")
        next(checkpoints)
        checkpoints.close()
    pieces = but_for_machine(tmp_path / "pieces" / "stats.jsonl")
    assert pieces == but_for_machine(tmp_path / "whole" / "stats.jsonl")
    assert [stats["step"] for stats in pieces] == [1, 2, 3, 4]


def test_starting_again_from_step_0_replaces_the_stats(dataset: Dataset, tmp_path: Path) -> None:
    """A start without a checkpoint to go on from leaves nothing of the one before."""
    other = LORA.model_copy(update={"seed": 77})
    next(train(other, dataset, [3], out_dir=tmp_path / "twice", device="cpu"))
    for name in ("twice", "once"):
        next(train(LORA, dataset, [1], out_dir=tmp_path / name, device="cpu"))
    twice, once = (but_for_machine(tmp_path / name / "stats.jsonl") for name in ("twice", "once"))
    assert twice == once
    assert len(once) == 1


def test_a_checkpoints_steps_are_on_the_disk_before_it_is_there(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Synced at their present length when the checkpoint is about to be written."""
    synced: set[tuple[int, int]] = set()
    fsync, save_checkpoint = os.fsync, training.journal.save_checkpoint

    def remember(descriptor: int) -> None:
        fsync(descriptor)
        synced.add(identity(os.fstat(descriptor)))

    def identity(file: os.stat_result) -> tuple[int, int]:
        return file.st_ino, file.st_size

    def save(*arguments: object) -> Checkpoint:
        file = tmp_path / "stats.jsonl"
        assert [stats.step for stats in read_stats(file)] == list(range(1, arguments[3] + 1))
        assert identity(file.stat()) in synced
        return save_checkpoint(*arguments)

    monkeypatch.setattr(os, "fsync", remember)
    monkeypatch.setattr(training.journal, "save_checkpoint", save)
    assert [checkpoint.step for checkpoint in train(LORA, dataset, [1, 2], out_dir=tmp_path, device="cpu")] == [1, 2, 4]


KILLED_TRAINING = """
import os, signal, sys
import torch
from training.config import LoraConfig
from training.dataset import load_dataset
from training.train import train
torch.set_num_threads(1)
config, dataset_dir, out_dir = sys.argv[1:]
def kill(step, loss):
    if step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
dataset = load_dataset(dataset_dir)
list(train(LoraConfig.model_validate_json(config), dataset, [2], out_dir=out_dir, device="cpu", on_step=kill))
"""


def test_a_killed_trainings_stats_go_on_as_if_it_had_not_been(dataset: Dataset, tmp_path: Path) -> None:
    """SIGKILL at step 3, past the checkpoint of step 2; and a torn line of step 4, as a kill in writing leaves it."""
    arguments = [LORA.model_dump_json(), str(dataset.dir), str(tmp_path / "killed")]
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", KILLED_TRAINING, *arguments], cwd=root, check=False)  # noqa: S603
    assert done.returncode == -signal.SIGKILL
    file = tmp_path / "killed" / "stats.jsonl"
    assert [stats.step for stats in read_stats(file)] == [1, 2, 3]
    with file.open("a") as stream:
        stream.write('{"step":4,"loss":0.')
    latest = latest_checkpoint(tmp_path / "killed")
    assert latest is not None
    assert latest.step == 2
    last(train(LORA, dataset, [2], latest, out_dir=tmp_path / "killed", device="cpu"))
    last(train(LORA, dataset, [2], out_dir=tmp_path / "whole", device="cpu"))
    assert but_for_machine(file) == but_for_machine(tmp_path / "whole" / "stats.jsonl")


@given(num_steps=st.integers(0, 60), count=st.integers(1, 30), torn=st.binary(max_size=40))
def test_the_newest_steps_are_the_last_of_all(num_steps: int, count: int, torn: bytes) -> None:
    """Read from the file's end or whole, with a line that is not whole behind them or none."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stats.jsonl"
        assert read_newest(path, count) == []
        path.write_bytes(b"".join(a_line(step) for step in range(1, num_steps + 1)) + torn)
        assert read_newest(path, count) == read_stats(path)[-count:]


def a_line(step: int) -> bytes:
    long = 0.1 + 1e-17 * step
    return (
        StepStats(
            step=step, loss=long, learning_rate=long, gradient_norm=long, seconds=long, peak_memory_bytes=10**step
        ).model_dump_json()
        + "\n"
    ).encode()
