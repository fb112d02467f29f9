"""Several LoRAs over one frozen module: their adapters in one bank, and the layers that apply each to its own rows.

Packing is exact. Adapters of lower rank than the widest are filled up with zeros, whose gradients are zero, so that
AdamW leaves them zero; nothing in Stable Diffusion's modules mixes the rows of a batch. The layout is that of
mLoRA's BatchLoRA and of PLoRA (arXiv 2508.02932): one batched matrix product serves all adapters of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from training.packed_dropout import PackedDropout

A, B = "lora_A.weight", "lora_B.weight"
"""How peft ends the names of an adapter's two matrices, [rank, in] and [out, rank]."""


class AdapterBank:
    """The adapters of K LoRAs over the same layers of a module, in the precision that they come in.

    All of one LoRA's weights are one row, which is what its optimizer changes; each layer has a view of all rows.

    Args:
        module: whose layers they are for.
        loras: each LoRA's tensors under peft's names, on the CPU, in any order.
        device: where the bank lies.

    Attributes:
        rows: K parameters [size], padding included.
    """

    def __init__(self, module: nn.Module, loras: Sequence[Mapping[str, Tensor]], device: torch.device) -> None:
        assert len({frozenset(lora) for lora in loras}) == 1, "the LoRAs of a bank have the same layers"
        self._module = module
        # In the order in which an optimizer of peft's own modules would have them.
        paths = [path for path, _ in module.named_modules() if f"{path}.{A}" in loras[0]]
        self._names = [f"{path}.{matrix}" for path in paths for matrix in (A, B)]
        assert len(self._names) == len(loras[0]), "every adapter has its layer"
        self._ranks = [_rank_of(lora) for lora in loras]
        self._shapes = {name: _packed_shape(name, loras[0][name], max(self._ranks)) for name in self._names}
        self._sizes = [shape[0] * shape[1] for shape in self._shapes.values()]
        dtype = loras[0][self._names[0]].dtype
        bank = torch.zeros(len(loras), sum(self._sizes), dtype=dtype, device=device)
        self.rows = [nn.Parameter(row) for row in bank]
        parts = torch.split(bank, self._sizes, dim=1)
        self._leaves = {
            name: part.view(len(loras), *shape).detach().requires_grad_()
            for part, (name, shape) in zip(parts, self._shapes.items(), strict=True)
        }
        for number, (row, lora) in enumerate(zip(bank, loras, strict=True)):
            row.copy_(self.row_of(number, lora))

    def add_layers(self, scales: Sequence[float], dropout: PackedDropout) -> None:
        """Put a layer in the place of each of the module's that has adapters, their products times `scales`."""
        for name in self._names:
            if name.endswith(A):
                path = name.removesuffix(f".{A}")
                parent, _, child = path.rpartition(".")
                base_layer = self._module.get_submodule(path)
                layer = PackedLoraLinear(base_layer, self._leaves[name], self._leaves[f"{path}.{B}"], scales, dropout)
                setattr(self._module.get_submodule(parent), child, layer)

    def take_gradients(self) -> None:
        """Move what backward has left at the layers to the rows, whose optimizers ask for it."""
        gradients = torch.cat([leaf.grad.flatten(1) for leaf in self._leaves.values() if leaf.grad is not None], dim=1)
        for leaf in self._leaves.values():
            leaf.grad = None
        for row, gradient in zip(self.rows, gradients, strict=True):
            row.grad = gradient

    def lora(self, number: int, row: Tensor | None = None) -> dict[str, Tensor]:
        """One LoRA's tensors without their padding, under peft's names: views of a row of the bank.

        Args:
            number: of the LoRA.
            row: [size] another tensor that is laid out as the LoRA's row is; default: the row itself.
        """
        row = self.rows[number].detach() if row is None else row
        rank = self._ranks[number]
        views = {}
        for part, (name, shape) in zip(torch.split(row, self._sizes), self._shapes.items(), strict=True):
            matrix = part.view(shape)
            views[name] = matrix[:, :rank].T if name.endswith(A) else matrix[:rank].T
        return views

    def row_of(self, number: int, lora: Mapping[str, Tensor]) -> Tensor:
        """The way back from `lora`: tensors of its names and shapes as one [size], zero where there is padding."""
        row = torch.zeros_like(self.rows[number].detach())
        for name, view in self.lora(number, row).items():
            view.copy_(lora[name])
        return row


class PackedLoraLinear(nn.Module):
    """A frozen linear layer with K adapters, each on its own rows of the batch: peft's LoRA layer, K at a time.

    Args:
        base_layer: the frozen layer.
        lora_a: [K, in, R], leaf tensor.
        lora_b: [K, R, out], leaf tensor.
        scales: of each adapter's product, alpha / rank as a rule.
        dropout: of the adapters' inputs.
    """

    def __init__(
        self, base_layer: nn.Module, lora_a: Tensor, lora_b: Tensor, scales: Sequence[float], dropout: PackedDropout
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._lora_a, self._lora_b = lora_a, lora_b
        self._dropout = dropout.of_a_layer()
        self._scales = lora_a.new_tensor(scales).view(-1, 1, 1) if set(scales) != {1.0} else None

    def forward(self, x: Tensor) -> Tensor:
        """[K * rows, ..., in] to [K * rows, ..., out]; the first rows are the first adapter's."""
        dropped = x if self._dropout is None else self._dropout(x.float())  # peft drops in float32
        kind = x.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):  # cast once for all products
            x, dropped = x.to(torch.get_autocast_dtype(kind)), dropped.to(torch.get_autocast_dtype(kind))
        result: Tensor = self.base_layer(x)
        hidden = torch.bmm(dropped.reshape(len(self._lora_a), -1, x.shape[-1]), self._lora_a)
        if self._scales is not None:
            hidden = hidden * self._scales
        return torch.baddbmm(result.view(len(hidden), -1, result.shape[-1]), hidden, self._lora_b).view(result.shape)


def _rank_of(lora: Mapping[str, Tensor]) -> int:
    (rank,) = {len(tensor) for name, tensor in lora.items() if name.endswith(A)}
    return rank


def _packed_shape(name: str, tensor: Tensor, rank: int) -> tuple[int, int]:
    """Of a matrix in the bank, transposed to [in, R] or [R, out]."""
    return (tensor.shape[1], rank) if name.endswith(A) else (rank, tensor.shape[0])
