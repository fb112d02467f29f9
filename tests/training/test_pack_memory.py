"""How many trainings share a pass is measured, and measuring leaves nothing behind.

The device is a made-up one: it knows which packs are alive and what they would take. No GPU is asked.
"""

from __future__ import annotations

import random
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

import training.pack
import training.pack_memory
import training.train
from tests.training.conftest import NUM_CLASS_IMAGES
from tests.training.test_pack import UNLIKE, in_pack, tensors_of
from tests.training.test_train import assert_same
from training.config import LoraConfig
from training.dataset import Dataset
from training.errors import UserError
from training.pack import Member, Pack
from training.pack_memory import MARGIN, GpuMeter, Taken, costliest, meter_of, most_that_fit, trainings_of_a_pass

CPU = torch.device("cpu")
FROZEN, ROW, MOMENTS, STEP = 1000, 3, 6, 100
"""What the made-up device holds always, and for each training: adapters, then moments, then what a step takes."""


@dataclass
class MadeUpDevice:
    """A meter of a device on which packs take what the constants say; past its end they run out of memory."""

    size: int
    other: int = 0
    """Of this process, and no pack's."""
    packs: list[weakref.ref[Pack]] = field(default_factory=list)
    trainings: list[int] = field(default_factory=list)
    """Of every pack that was made."""
    most: int = 0
    reserved: int = 0
    """What was held at one time or another, and has not been given back to the device."""

    def start_pack(self, members: Sequence[Member], dataset: Dataset, device: torch.device) -> Pack:
        """As `training.pack` does."""
        pack = training.pack.start_pack(members, dataset, device)
        self.packs.append(weakref.ref(pack))
        self.trainings.append(len(members))
        return pack

    def take_pack_step(self, pack: Pack) -> list[tuple[Tensor, Tensor]]:
        """As `training.pack` does."""
        self.most = max(self.most, self.held() + STEP * len(pack.runs))
        self.reserved = max(self.reserved, self.most)
        if self.most > self.size:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return training.pack.take_pack_step(pack)

    def free_memory(self, device: torch.device) -> None:
        """As `training.train` does."""
        training.train.free_memory(device)
        self.reserved = self.held()

    def begin(self) -> None:
        """As of `Meter`."""
        self.most = self.held()

    def peak(self) -> int:
        """As of `Meter`."""
        return self.most

    def held(self) -> int:
        """As of `Meter`."""
        alive = [run for reference in self.packs if (pack := reference()) is not None for run in pack.runs]
        return self.other + FROZEN + sum(ROW + MOMENTS * (run.step > 0) for run in alive)

    def free(self) -> int:
        """As of `Meter`."""
        return self.size - max(self.held(), self.reserved)


@pytest.fixture
def device_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a device of a size, on which packs are measured from then on."""

    def of(size: int, other: int = 0) -> MadeUpDevice:
        device = MadeUpDevice(size, other)
        for name in ("start_pack", "take_pack_step", "free_memory"):
            monkeypatch.setattr(training.pack_memory, name, getattr(device, name))
        return device

    return of


def needed(trainings: int, in_a_pass: int) -> int:
    """Bytes for a pack of which so many share a pass."""
    return FROZEN + trainings * (ROW + MOMENTS) + in_a_pass * STEP


@pytest.mark.parametrize("other", [0, 500])
@pytest.mark.parametrize("fitting", [1, 2, 3, 4])
def test_what_is_planned_fits_and_one_more_would_not(
    fitting: int, other: int, dataset: Dataset, device_of: Any
) -> None:
    """To the byte, with the margin kept free, beside whatever else this process holds."""
    taken = needed(4, fitting) - FROZEN
    size = other + FROZEN + round(taken / (1 - MARGIN)) + 1
    device = device_of(size, other)
    assert trainings_of_a_pass(UNLIKE["plain"], dataset, CPU, device) == fitting
    device = device_of(size - 3, other)
    assert trainings_of_a_pass(UNLIKE["plain"], dataset, CPU, device) == max(1, fitting - 1)
    assert device.trainings == [1, 2]


def test_where_a_step_of_two_or_one_does_not_fit_each_trains_alone(dataset: Dataset, device_of: Any) -> None:
    """That one alone may not fit either is the training's own failure, later."""
    for size, tried in ((needed(2, 2) - 1, [1, 2]), (needed(1, 1), [1, 2]), (needed(1, 1) - 1, [1])):
        device = device_of(size)
        assert trainings_of_a_pass(UNLIKE["plain"], dataset, CPU, device) == 1
        assert device.trainings == tried


@pytest.mark.parametrize("size", [10_000, needed(2, 2) - 1, needed(1, 1) - 1])
def test_measuring_leaves_nothing_behind(
    size: int, dataset: Dataset, device_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No pack, no peak, no file, no generator elsewhere than it was; whether it fits or not, dropout and all."""
    monkeypatch.chdir(tmp_path)
    device = device_of(size)
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    before = (random.getstate(), str(np.random.get_state()), torch.get_rng_state())
    there = sorted(dataset.dir.rglob("*"))
    trainings_of_a_pass(UNLIKE["everything"], dataset, CPU, device)
    assert all(reference() is None for reference in device.packs)
    assert device.held() == device.peak() == device.reserved == FROZEN
    assert (random.getstate(), str(np.random.get_state())) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert sorted(dataset.dir.rglob("*")) == there
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", UNLIKE)
def test_a_pack_that_was_measured_trains_to_the_same_bits(kind: str, dataset: Dataset, device_of: Any) -> None:
    """Losses, weights and moments."""
    plain, expected = in_pack(UNLIKE[kind], dataset, 3)
    trainings_of_a_pass(UNLIKE[kind], dataset, CPU, device_of(10_000))
    measured, losses = in_pack(UNLIKE[kind], dataset, 3)
    assert losses == expected
    for one, other in zip(measured.runs, plain.runs, strict=True):
        assert_same(tensors_of(one), tensors_of(other))


def test_what_is_measured_takes_as_much_as_any_of_the_pack() -> None:
    """The widest, with dropout and alpha where any has them, and gradient checkpointing where all have it."""
    plain = LoraConfig(rank=2, seed=3)
    wide = plain.model_copy(update={"rank": 8})
    assert costliest([plain, wide]) == wide
    dropping = plain.model_copy(update={"lora_dropout": 0.1, "lora_alpha": 4.0, "gradient_checkpointing": True})
    asked = costliest([dropping, wide])
    assert (asked.rank, asked.lora_dropout, asked.gradient_checkpointing) == (8, 0.1, False)
    assert asked.lora_alpha not in (None, asked.rank)
    assert costliest([dropping, dropping]).gradient_checkpointing


def test_what_cannot_be_trained_is_refused_as_training_would(dataset: Dataset, device_of: Any) -> None:
    """Before anything is measured."""
    device = device_of(10_000)
    config = LoraConfig(with_prior_preservation=True, num_class_images=NUM_CLASS_IMAGES + 1)
    with pytest.raises(UserError, match="num_class_images"):
        trainings_of_a_pass([config, config], dataset, CPU, device)
    assert device.trainings == []


sizes = st.integers(0, 10**6)


@given(st.integers(1, 64), sizes, sizes, sizes, st.integers(1, 10**6))
@example(8, 5400, 10, 20, 1)
def test_the_most_that_fit(trainings: int, room: int, fixed: int, between: int, in_a_step: int) -> None:
    """Between 1 and all; what is planned fits, and one more would not."""

    def taken(of: int) -> Taken:
        return Taken(fixed + of * (between + in_a_step), fixed + of * between)

    def fits(in_a_pass: int) -> bool:
        return fixed + trainings * between + in_a_pass * in_a_step <= room

    most = most_that_fit(trainings, taken(1), taken(2), room)
    assert 1 <= most <= trainings
    assert most == 1 or fits(most)
    assert most == trainings or not fits(most + 1)


def test_only_a_gpu_is_measured() -> None:
    """The memory of a CPU is the machine's."""
    assert meter_of(CPU, 1.0) is None
    assert isinstance(meter_of(torch.device("cuda"), 1.0), GpuMeter)


@pytest.mark.parametrize(("part", "free"), [(1.0, 600), (0.5, 300), (0.1, 0)])
def test_a_part_of_a_gpu_is_all_that_a_process_counts_on(
    part: float, free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever shares it may not have taken theirs yet; 600 of 1000 are free, and torch has 200."""
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _device: (600, 1000))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda _device: 200)
    assert GpuMeter(torch.device("cuda"), part).free() == free
