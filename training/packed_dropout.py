"""The dropout of several runs in one pass: each run's masks are those that it would have drawn alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn


class PackedDropout:
    """The streams of random numbers that K runs' dropout draws from, layer after layer, in one forward pass.

    Args:
        rates: each run's probability of a zero.
        device: where the runs train.
    """

    def __init__(self, rates: Sequence[float], device: torch.device) -> None:
        self.rates = list(rates)
        self.device = device
        self._on_gpu = device.type == "cuda"
        self.forward_pass = 0
        """Counts them, so that a layer knows when it is only computed again."""
        self.states: list[Tensor] = []
        """Where each stream is."""

    def begin(self, seeds: Iterable[int]) -> None:
        """Start a forward pass, each run's stream at its seed."""
        if not any(self.rates):
            return
        self.forward_pass += 1
        self.states = []
        with self.own_numbers():
            for seed in seeds:
                self.seed(seed)
                self.states.append(self.state())

    def of_a_layer(self) -> LayerDropout | None:
        """A layer's own; None where no run has any."""
        return LayerDropout(self) if any(self.rates) else None

    def own_numbers(self) -> AbstractContextManager[None]:
        """While this lasts, torch's generators may be set to whatever; afterwards they are as they were."""
        forked: AbstractContextManager[None] = torch.random.fork_rng([self.device] if self._on_gpu else [])
        return forked

    def seed(self, seed: int) -> None:
        """Let that which draws on the runs' device begin."""
        if self._on_gpu:
            with torch.cuda.device(self.device):
                torch.cuda.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)

    def state(self) -> Tensor:
        """Where it is."""
        return torch.cuda.get_rng_state(self.device) if self._on_gpu else torch.get_rng_state()

    def set_state(self, state: Tensor) -> None:
        """Let it go on from here."""
        if self._on_gpu:
            torch.cuda.set_rng_state(state, self.device)
        else:
            torch.set_rng_state(state)


class LayerDropout(nn.Module):
    """Dropout before one layer's adapters; computed again in the same pass (gradient checkpointing), it is the same."""

    def __init__(self, packed: PackedDropout) -> None:
        super().__init__()
        self._packed = packed
        self._forward_pass = 0
        self._states: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """[K * rows, ...] to the same, the first rows the first run's."""
        packed = self._packed
        is_first = self._forward_pass != packed.forward_pass
        if is_first:
            self._forward_pass, self._states = packed.forward_pass, packed.states
        dropped, states = [], []
        with packed.own_numbers():
            for rate, state, rows in zip(packed.rates, self._states, x.chunk(len(packed.rates)), strict=True):
                packed.set_state(state)
                dropped.append(nn.functional.dropout(rows, rate) if rate else rows)
                states.append(packed.state() if rate else state)
        if is_first:
            packed.states = states
        return torch.cat(dropped)
