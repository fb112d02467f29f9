"""One training by several processes: each takes its rows of every batch, and all of them take the same step.

Every process draws the whole batch, whose random numbers are functions of their position, and looks at its own rows
alone; gradients are averaged before they are clipped. So the run is the run that one process would train, up to
rounding, however many share it, and a checkpoint can be gone on from by any number of them.

The models are not wrapped. `DistributedDataParallel` would rename their weights, and accelerate's `prepare` would
multiply batch and schedule by the number of processes: both would be another run.

The process group (`torch.distributed.init_process_group`: NCCL on GPUs, gloo on CPUs) is whoever's who starts the
processes. Between two checkpoints of `train` nothing here waits for the other processes: they may be far apart then,
and a collective would run into its time-out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, distributed, nn

from training.share import Share

BUCKET_BYTES = 256_000_000
"""Gradients that are averaged in one go: few calls for a LoRA, little memory on top for a whole UNet (3.4 GB)."""


def rows_of(share: Share, train_batch_size: int, num_parts: int) -> list[int]:
    """The rows of a whole batch that are this process's: the same number of each of its parts.

    Args:
        share: the process's.
        train_batch_size: rows of a part; `world_size` divides it, so that the mean of means is the mean.
        num_parts: 1, or with prior preservation 2: the subject's rows, then the class's.
    """
    assert train_batch_size % share.world_size == 0, "train_batch_size was held against the number of processes"
    own = share.of(train_batch_size)
    return [part * train_batch_size + row for part in range(num_parts) for row in own]


class RowDropout(nn.Dropout):
    """Dropout on some rows of a batch with the masks that the whole batch would have drawn.

    Args:
        p: probability of a zero.
        rows: which of the whole batch's rows the input holds.
        batch_size: rows of the whole batch.
    """

    def __init__(self, p: float, rows: Sequence[int], batch_size: int) -> None:
        super().__init__(p)
        self._rows, self._batch_size = list(rows), batch_size

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 -- torch's name
        """Float [own rows, ...] to the same."""
        if not self.training:
            return input
        factors = nn.functional.dropout(input.new_ones(self._batch_size, *input.shape[1:]), self.p)
        return input * factors[self._rows]


def drop_by_row(module: nn.Module, rows: Sequence[int], batch_size: int) -> None:
    """Let every dropout in `module`, whose first dimension is the batch, draw for the whole batch."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Dropout) and child.p > 0:
                setattr(parent, name, RowDropout(child.p, rows, batch_size).train(child.training))


def average_gradients(share: Share, parameters: Sequence[nn.Parameter]) -> None:
    """Put the processes' mean in the place of each gradient, everywhere the same to the last bit.

    A gradient that has overflowed in one process has then overflowed in all.
    """
    if share.is_whole:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        distributed.all_reduce(flat)
        flat /= share.world_size
        means = torch.split(flat, [gradient.numel() for gradient in bucket])
        for gradient, mean in zip(bucket, means, strict=True):
            gradient.copy_(mean.view_as(gradient))


def mean_over_processes(share: Share, value: float, device: torch.device) -> float:
    """The mean of a number that each process has, in float64."""
    if share.is_whole:
        return value
    mean = torch.tensor(value, dtype=torch.float64, device=device)
    distributed.all_reduce(mean)
    return mean.item() / share.world_size


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors in order, in groups of at most `BUCKET_BYTES` or of one."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and size + tensor.nbytes > BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket
