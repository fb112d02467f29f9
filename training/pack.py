"""A pack: K LoRA trainings that share every forward and backward pass of the frozen base model.

Each run has its own rows of the batch, its own row of the adapters' bank, its own optimizer, schedule and random
numbers; only the pass is shared. So a run in a pack is the run alone, up to rounding: how a sum is rounded depends on
how many rows are computed with it. No run's numbers enter another's.

What runs of one pack have in common is in `PACKS_AGREE_ON`; anything else may differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from training.adapter_bank import AdapterBank
from training.batches import PromptEncoder, Stream, frozen_prompt_encoder, seed_at
from training.checkpoint import Checkpoint, load_training_state
from training.config import LoraConfig, pack_together
from training.dataset import Dataset
from training.initial_weights import start_of_lora
from training.methods import LoraTensors, first_lora, frozen_copy, load_lora
from training.packed_dropout import PackedDropout
from training.stable_diffusion import load_base_model
from training.step import TrainingRun, apply_gradients, batch_of, inputs_of, micro_step_loss, run_over


@dataclass(frozen=True)
class PackRow:
    """What one run of a pack trains: a row of each bank."""

    banks: Sequence[AdapterBank]
    """The UNet's and, where it trains, the text encoder's."""
    number: int

    def groups(self) -> list[list[torch.nn.Parameter]]:
        """As `TrainedWeights` says; all of a module's adapters are one parameter."""
        return [[bank.rows[self.number]] for bank in self.banks]

    def saved(self) -> LoraTensors:
        """As `TrainedWeights` says: views, which the next step changes."""
        unet, *text_encoder = (bank.lora(self.number) for bank in self.banks)
        return LoraTensors(unet, text_encoder[0] if text_encoder else None)

    def optimizer_state_alone(self, state: dict[str, Any]) -> dict[str, Any]:
        """As `TrainedWeights` says: a row's moments taken apart into those of the tensors that peft's modules have."""
        moments: list[dict[str, Tensor]] = []
        groups = []
        for bank, group in zip(self.banks, state["param_groups"], strict=True):
            row = state["state"].get(group["params"][0], {})
            parts = {key: bank.lora(self.number, value) for key, value in row.items() if value.dim()}
            single = {key: value for key, value in row.items() if not value.dim()}
            names = list(bank.lora(self.number))
            own = list(range(len(moments), len(moments) + len(names)))
            groups.append({**group, "params": own, "fused": None})
            moments += [{**single, **{key: part[name] for key, part in parts.items()}} for name in names]
        return {"state": {index: own for index, own in enumerate(moments) if own}, "param_groups": groups}

    def optimizer_state_here(self, state: dict[str, Any]) -> dict[str, Any]:
        """As `TrainedWeights` says: the tensors' moments put together into those of a row, zero where it is padded."""
        moments, groups = {}, []
        for index, (bank, group) in enumerate(zip(self.banks, state["param_groups"], strict=True)):
            groups.append({**group, "params": [index]})
            names = list(bank.lora(self.number))
            own = [state["state"][number] for number in group["params"] if number in state["state"]]
            if own:
                moments[index] = {
                    key: bank.row_of(self.number, dict(zip(names, (each[key] for each in own), strict=True)))
                    if value.dim()
                    else value
                    for key, value in own[0].items()
                }
        return {"state": moments, "param_groups": groups}


@dataclass(frozen=True)
class Member:
    """A run before it is put into a pack: from its start, from a checkpoint, or from the pack it was in."""

    config: LoraConfig
    weights: LoraTensors
    training_state: dict[str, Any] | None = None
    """None before the first step."""
    step: int = 0

    @classmethod
    def of(cls, config: LoraConfig, dataset: Dataset, resume_from: Checkpoint | None) -> Member:
        """As the run alone would begin.

        Raises:
            UserError: the checkpoint is not one to go on from.
        """
        if resume_from is None:
            return cls(config, start_of_lora(config, dataset) or first_lora(config, dataset.base_model))
        return cls(config, load_lora(resume_from.dir), load_training_state(resume_from), resume_from.step)

    @classmethod
    def taken_from(cls, run: TrainingRun[PackRow]) -> Member:
        """As the run is now."""
        return cls(run.config, run.weights.saved(), run.training_state(), run.step)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Pack:
    """Runs that train together, and the modules that they share."""

    runs: list[TrainingRun[PackRow]]
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel | None
    banks: Sequence[AdapterBank]
    dropout: PackedDropout


def start_pack(members: Sequence[Member], dataset: Dataset, device: torch.device) -> Pack:
    """A pack of these runs, in this order; which of them were together before makes no difference.

    Raises:
        UserError: the base model cannot be had.
    """
    configs = [member.config for member in members]
    assert all(pack_together(configs[0], config) for config in configs), "what packs agree on"
    dropout = PackedDropout([config.lora_dropout for config in configs], device)
    modules: list[Any] = []
    banks = []
    for part in ("unet", "text_encoder") if configs[0].train_text_encoder else ("unet",):
        module = frozen_copy(configs[0], dataset.base_model, part, device)
        bank = AdapterBank(module, [getattr(member.weights, part) for member in members], device)
        bank.add_layers([config.scale for config in configs], dropout)
        module.train()
        modules.append(module)
        banks.append(bank)
    unet, text_encoder = modules[0], modules[1] if len(modules) > 1 else None
    if configs[0].channels_last:
        unet.to(memory_format=torch.channels_last)
    if any(config.gradient_checkpointing for config in configs):
        unet.enable_gradient_checkpointing()
        if text_encoder is not None:
            text_encoder.activation_checkpointing_enable()
    if text_encoder is None:
        encode_prompts = frozen_prompt_encoder(dataset.base_model, device)
    else:
        encode_prompts = PromptEncoder(load_base_model(dataset.base_model), text_encoder, device)
    runs = []
    for number, member in enumerate(members):
        run = run_over(PackRow(banks, number), member.config, dataset, device, encode_prompts, fused=True)
        if member.training_state is not None:
            run.load_training_state(member.training_state, member.step)
        runs.append(run)
    return Pack(runs, unet, text_encoder, banks, dropout)


def take_pack_step(pack: Pack) -> list[tuple[Tensor, Tensor]]:
    """One optimizer step of every run; each one's mean loss [] and gradient norm []."""
    losses = [_forward_and_backward(pack, number) for number in range(len(pack.runs[0].micro_steps))]
    for bank in pack.banks:
        bank.take_gradients()
    norms = [apply_gradients(run) for run in pack.runs]
    return list(zip(torch.stack(losses).double().mean(0), norms, strict=True))


def _forward_and_backward(pack: Pack, number: int) -> Tensor:
    """Add the gradients of each run's micro-step of this number within its step; the losses [K]."""
    runs = pack.runs
    micro_steps = [run.micro_steps[number] for run in runs]
    pack.dropout.begin(
        seed_at(run.config.seed, position, Stream.DROPOUT) for run, position in zip(runs, micro_steps, strict=True)
    )
    batches = [batch_of(run, micro_step) for run, micro_step in zip(runs, micro_steps, strict=True)]
    with runs[0].autocast():
        words = runs[0].encode_prompts([prompt for batch in batches for prompt in batch.prompts])
        inputs = [
            inputs_of(run, batch, own) for run, batch, own in zip(runs, batches, words.chunk(len(runs)), strict=True)
        ]
        prediction = pack.unet(
            torch.cat([asked.noisy_latents for asked in inputs]),
            torch.cat([asked.timesteps for asked in inputs]),
            words,
        ).sample
    losses = [
        micro_step_loss(run, answer, asked)
        for run, answer, asked in zip(runs, prediction.chunk(len(runs)), inputs, strict=True)
    ]
    scaled = [
        run.scaler.scale(loss / run.config.gradient_accumulation_steps) for run, loss in zip(runs, losses, strict=True)
    ]
    torch.autograd.backward(scaled)
    return torch.stack(losses).detach()
