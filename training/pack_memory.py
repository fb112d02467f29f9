"""How many trainings of a pack a pass has room for on a GPU: measured before the first pass, not found out by failing.

What a pass holds is a part that does not depend on how many train in it (frozen weights, workspaces) and a part for
each of them, so two passes tell of all. One training, then two, take two steps with adapters that are thrown away.
Nothing is left of them but frozen modules and prompts' embeddings, which the training would ask for next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from training.config import LoraConfig
from training.dataset import Dataset
from training.pack import Member, start_pack, take_pack_step
from training.train import check_run, free_memory

MARGIN = 0.1
"""Of the memory that is free: for holes between the allocator's blocks, and for kernels that want more workspace the
more rows they compute. A guess."""


class Meter(Protocol):
    """Tells what this process holds of a device's memory, in bytes."""

    def begin(self) -> None:
        """Forget the peak."""

    def peak(self) -> int:
        """The most that it has held since `begin`."""

    def held(self) -> int:
        """What it holds now."""

    def free(self) -> int:
        """What it could have besides."""


class GpuMeter:
    """Torch's own account of a GPU.

    Args:
        device: the GPU.
        part: of it that is this process's; others may not have taken theirs yet.
    """

    def __init__(self, device: torch.device, part: float) -> None:
        self._device, self._part = device, part

    def begin(self) -> None:
        """As of `Meter`."""
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int:
        """As of `Meter`."""
        return torch.cuda.max_memory_allocated(self._device)

    def held(self) -> int:
        """As of `Meter`."""
        return torch.cuda.memory_allocated(self._device)

    def free(self) -> int:
        """As of `Meter`; room within blocks that torch has already is not counted."""
        free, total = torch.cuda.mem_get_info(self._device)
        return max(0, min(free, int(self._part * total) - torch.cuda.memory_reserved(self._device)))


def meter_of(device: torch.device, part: float) -> Meter | None:
    """What measures a device of which this process has a part.

    None for a CPU: its memory is the machine's, which does not say beforehand where it ends.
    """
    return GpuMeter(device, part) if device.type == "cuda" else None


@dataclass(frozen=True)
class Taken:
    """Bytes that this process holds with a pack of some size, all else that it holds included."""

    peak: int
    """Within a step."""
    between: int
    """Between two steps: adapters and their moments."""


def trainings_of_a_pass(configs: Sequence[LoraConfig], dataset: Dataset, device: torch.device, meter: Meter) -> int:
    """The most trainings that a pass has room for: 1 or more, and all of the pack where they fit.

    Args:
        configs: of the pack's trainings.
        dataset: theirs.
        device: where they train.
        meter: of that device.

    Raises:
        UserError: as `train` does.
    """
    config = costliest(configs)
    check_run(config, dataset, device, None)
    member = Member.of(config, dataset, None)
    try:
        one = _taken_by([member], dataset, device, meter)
        two = None if one is None else _taken_by([member, member], dataset, device, meter)
    finally:
        meter.begin()  # a peak of what was thrown away is no training's
    if one is None or two is None:
        return 1
    return most_that_fit(len(configs), one, two, meter.held() + int((1 - MARGIN) * meter.free()))


def most_that_fit(trainings: int, one: Taken, two: Taken, room: int) -> int:
    """How many of a pack's trainings may share a pass.

    While some are in a pass, the adapters and moments of all the others lie beside it.

    Args:
        trainings: of the pack.
        one: with a pack of one.
        two: with a pack of two.
        room: bytes that this process may hold.
    """
    each, each_between = two.peak - one.peak, two.between - one.between
    fixed = one.peak - each
    in_a_step = max(1, each - each_between)
    return max(1, min(trainings, (room - fixed - trainings * each_between) // in_a_step))


def costliest(configs: Sequence[LoraConfig]) -> LoraConfig:
    """A training that takes as much memory as any of a pack could: the widest, with what costs any of them some."""
    widest = max(configs, key=lambda config: config.rank)
    is_scaled = any(config.scale != 1 for config in configs)
    return widest.model_copy(
        update={
            "lora_alpha": 2.0 * widest.rank if is_scaled else None,
            "lora_alpha_ratio": None,
            "use_rslora": False,
            "lora_dropout": max(config.lora_dropout for config in configs),
            "gradient_checkpointing": all(config.gradient_checkpointing for config in configs),
        }
    )


def _taken_by(members: Sequence[Member], dataset: Dataset, device: torch.device, meter: Meter) -> Taken | None:
    """What a pack of these takes; None where it does not fit. It is gone afterwards."""
    try:
        return _taken_in_steps(members, dataset, device, meter)
    except torch.OutOfMemoryError:
        return None
    finally:
        free_memory(device)


def _taken_in_steps(members: Sequence[Member], dataset: Dataset, device: torch.device, meter: Meter) -> Taken:
    pack = start_pack(members, dataset, device)
    meter.begin()
    for _ in range(2):  # the first one ends with AdamW's moments, which the second has beside its activations
        take_pack_step(pack)
    return Taken(meter.peak(), meter.held())
