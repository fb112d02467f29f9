"""Which trainings of a pack share one pass: as many as there is room for, but for ranks too far apart.

A pass pads every adapter to the widest one's rank. That is almost free (all of rank 2 to 128 in one pass of Stable
Diffusion 1.5 cost 4 % more than each at its own rank), and not quite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from training.config import LoraConfig
from training.dataset import Dataset
from training.flops import flops_of
from training.passes import Pass
from training.stable_diffusion import load_base_model

MOST_PADDING = 0.05
"""The part of a pass's FLOPs that may be spent on zeros."""


def passes_of(ranks: Sequence[int], cost: Callable[[int], float], largest: int) -> list[list[int]]:
    """Divide trainings into passes.

    The widest comes first, and the next narrower ones join it while the pass does not spend more than `MOST_PADDING`
    of its FLOPs on padding.

    Args:
        ranks: each training's, in the order of their rows.
        cost: FLOPs of a training's share of a pass at a rank, linear in it.
        largest: trainings of a pass.

    Returns:
        The places of each pass's trainings in `ranks`, in their order; together every place once.
    """
    passes: list[list[int]] = []
    for place in sorted(range(len(ranks)), key=lambda place: (-ranks[place], place)):
        own = passes[-1] if passes else []
        if own and len(own) < largest and _padding([ranks[other] for other in (*own, place)], cost) <= MOST_PADDING:
            own.append(place)
        else:
            passes.append([place])
    return sorted(sorted(places) for places in passes)


def _padding(ranks: Sequence[int], cost: Callable[[int], float]) -> float:
    """What padding adds to the FLOPs of a pass, as a part of what they would be."""
    return len(ranks) * cost(max(ranks)) / sum(map(cost, ranks)) - 1


def training_cost(config: LoraConfig, dataset: Dataset) -> Callable[[int], float]:
    """FLOPs of one sample's forward and backward pass through the UNet with a LoRA, as a function of its rank.

    Where the base model's configs cannot be had, every rank costs the same.
    """
    height, width = dataset.latents.mean.shape[-2:]
    factor = 2 ** (len(load_base_model(dataset.base_model).vae.config.block_out_channels) - 1)
    size = width * factor, height * factor
    one, two = (Pass("unet", *size, rank, True, config.gradient_checkpointing) for rank in (1, 2))
    costs = flops_of([one, two], dataset.base_model)
    if costs is None:
        return lambda _rank: 1.0
    return lambda rank: costs[one] + (rank - 1) * (costs[two] - costs[one])
