"""A run's best checkpoint as files that people load, each with its model card.

Weights are written in float32, the precision in which a checkpoint is stored, so that the exported model makes the very
pictures that were scored; whoever loads them may choose half precision.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from sweeps.config import SweepConfig, trigger_words
from sweeps.export.layouts import TEXT_MODEL, kohya_layout, original_layout, with_text_model_prefix
from sweeps.export.model_card import ADAPTER_NAMES, model_card
from sweeps.ledger.mirror import bring_here
from sweeps.results.leaderboard import Row
from sweeps.results.results import Results, read_results
from sweeps.results.weights import weights_problem
from sweeps.wording import public_name
from training.base_name import BaseName
from training.checkpoint import Checkpoint, load_pipeline, open_checkpoint
from training.config import LoraConfig, TrainConfig
from training.errors import UserError
from training.files import whole_folder
from training.layout import LORA_FILE
from training.stable_diffusion import load_base_model

MARKER = "dreamsweep.json"
"""Written beside the weights; a folder that has it and nothing foreign may be replaced by another export."""


@dataclass(frozen=True)
class _Export:
    """What every writer needs."""

    results: Results
    config: SweepConfig
    row: Row
    checkpoint: Checkpoint

    @property
    def file_name(self) -> str:
        return f"{self.config.name}.safetensors"

    def pipeline(self) -> StableDiffusionPipeline:
        return load_pipeline(self.checkpoint, self.config.base, device="cpu", dtype=torch.float32)

    def merged_pipeline(self) -> StableDiffusionPipeline:
        """The trained weights as the model's own: a LoRA is added to the layers that it adapts."""
        pipeline = self.pipeline()
        if self.row.method == "lora":
            pipeline.fuse_lora()
            pipeline.unload_lora_weights()
        return pipeline


def export_checkpoint(
    run_dir: Path | str,
    dest: Path | str,
    trial: str | None = None,
    format: str = "diffusers",  # noqa: A002 -- the option's name
) -> Path:
    """Write the champion, or the best checkpoint of `trial` by the same rule, to the folder `dest`.

    Args:
        run_dir: the run folder.
        dest: a folder that does not exist, is empty, or holds an earlier export and nothing else.
        trial: id of a trial, or of a finalist's training with another seed; default: the champion.
        format: `diffusers` a pipeline folder; `lora` the LoRA file of diffusers and peft; `kohya` the LoRA file of
            A1111 and ComfyUI; `checkpoint` one file in Stable Diffusion 1's original layout. A LoRA is merged into its
            base model in the first and the last.

    Returns:
        `dest`. It is whole or untouched.

    Raises:
        UserError: no champion, no such trial, a format that does not fit, a damaged checkpoint, a `dest` in use.
    """
    results = read_results(run_dir)
    row = _choose(results, trial)
    _check_format(format, row)
    dest = Path(dest).expanduser().resolve()
    _check_dest(dest)
    config = results.config
    if config is None or row.checkpoint is None:
        raise UserError(f"export: {results.warnings[0] if results.warnings else 'the trial has no checkpoint'}")
    bring_here(results.folder, config.storage, row.checkpoint)
    try:
        checkpoint = open_checkpoint(results.folder.inside(row.checkpoint), config.base)
    except UserError as error:
        problem = weights_problem(results.folder, row, digests=True)
        raise UserError(f"export: {f'{results.folder.dir}: {problem}' if problem else error}") from error
    _check_adapter(format, row.trial, checkpoint.config)
    export = _Export(results, config, row, checkpoint)
    dest.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(dest) as part:
        file = WRITERS[format](export, part)
        (part / "README.md").write_text(model_card(results, config, row, format, file), encoding="utf-8")
        _write_marker(part, export, format)
    return dest


def _choose(results: Results, trial: str | None) -> Row:
    if trial is not None:
        row = results.checkpoint_of(trial)
        if row.is_base:
            raise UserError(f"export: {trial!r} is the untouched base model; name a trained trial")
        return row
    if results.champion.row is None:
        raise UserError(f"export: {results.champion.reason} (rule: {results.champion.rule}); choose one with --trial")
    return results.champion.row


def _check_format(format: str, row: Row) -> None:  # noqa: A002
    if format not in WRITERS:
        raise UserError(f"export: format must be one of {', '.join(WRITERS)}, got {format!r}")
    if format in LORA_FORMATS and row.method != "lora":
        fitting = " or ".join(name for name in WRITERS if name not in LORA_FORMATS)
        raise UserError(f"export: format {format} is for a LoRA, and {row.trial} is a full fine-tune; use {fitting}")


def _check_adapter(format: str, trial: str, config: TrainConfig) -> None:  # noqa: A002
    """Refuse a file that nobody could load, or that its readers would read as another model.

    Readers of kohya's layout put a DoRA's magnitudes on the inputs, or divide by the norm of the untouched weights:
    ComfyUI and Forge did the one in some releases and do the other in later ones, peft does neither. diffusers drops
    them.
    """
    if not isinstance(config, LoraConfig):
        return
    merged = "use diffusers or checkpoint, in which it is merged into the base model"
    if format == "lora" and config.adapter != "lora":
        raise UserError(
            f"export: diffusers loads no {ADAPTER_NAMES[config.adapter]} file, and {trial} is one; {merged}, or kohya, "
            "which A1111 and ComfyUI read"
        )
    if format == "kohya" and config.use_dora:
        raise UserError(
            f"export: programs that read kohya's layout compute another model from a DoRA, and {trial} is one; "
            f"{merged}, or lora, which diffusers reads"
        )


def _check_dest(dest: Path) -> None:
    """Refuse to replace anything that an export did not write."""
    if dest.suffix == ".safetensors":
        raise UserError(f"export: DEST is the folder to write the files into, got a file's name: {dest}")
    if not dest.exists():
        return
    if not dest.is_dir():
        raise UserError(f"export: DEST must be a folder, got a file: {dest}")
    foreign = sorted(_files(dest) - _files_of_earlier_export(dest))
    if foreign:
        raise UserError(f"export: DEST must be empty or an earlier export, found {foreign[0]} in {dest}")


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def _files_of_earlier_export(dest: Path) -> set[str]:
    try:
        marker = json.loads((dest / MARKER).read_text(encoding="utf-8"))
        return {*marker["files"], MARKER}
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError):
        return set()


def _write_marker(folder: Path, export: _Export, format: str) -> None:  # noqa: A002
    row, champion = export.row, export.results.champion
    content = {
        "format": format,
        "sweep": export.config.name,
        "trial": row.trial,
        "method": row.method,
        "step": row.step,
        "base_model": public_name(export.config.base_model),
        "face_similarity": row.face_similarity,
        "prompt_alignment": row.prompt_alignment,
        "champion": row.champion,
        "rule": champion.rule,
        "files": sorted(_files(folder)),
    }
    (folder / MARKER).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


# --- the four formats ---------------------------------------------------------------------------------------------


def _write_diffusers(export: _Export, folder: Path) -> None:
    export.merged_pipeline().save_pretrained(folder, safe_serialization=True)
    weights = folder / "text_encoder" / "model.safetensors"
    save_file(with_text_model_prefix(load_file(weights)), weights, metadata={"format": "pt"})


def _write_lora(export: _Export, folder: Path) -> str:
    """The checkpoint's file, adapter metadata included; text encoder keys as transformers 4 and 5 both read them."""
    source = export.checkpoint.dir / LORA_FILE
    with safe_open(str(source), framework="pt") as stored:
        metadata = stored.metadata()
    here, there = "text_encoder.", f"text_encoder.{TEXT_MODEL}"
    tensors = {
        key if not key.startswith(here) or key.startswith(there) else there + key.removeprefix(here): tensor
        for key, tensor in load_file(source).items()
    }
    save_file(tensors, folder / LORA_FILE, metadata=metadata)
    return LORA_FILE


def _write_kohya(export: _Export, folder: Path) -> str:
    tensors = kohya_layout(export.pipeline())
    save_file(tensors, folder / export.file_name, metadata=kohya_metadata(export, tensors))
    return export.file_name


def _write_checkpoint(export: _Export, folder: Path) -> str:
    """All layers of the text encoder, those that `clip_skip` leaves out as the base model has them: readers want 12."""
    pipeline = export.merged_pipeline()
    config = export.config
    if config.clip_skip > 1:
        whole = load_base_model(str(BaseName(config.base_model, config.revision, config.variant))).text_encoder
        pipeline.text_encoder.encoder.layers.extend(whole.encoder.layers[1 - config.clip_skip :])
    metadata = {"format": "pt", **_modelspec(export, "stable-diffusion-v1")}
    save_file(original_layout(pipeline), folder / export.file_name, metadata=metadata)
    return export.file_name


LORA_FORMATS = ("lora", "kohya")
KOHYA_OPTIMIZERS = {"adamw": "AdamW", "prodigy": "Prodigy", "adafactor": "Adafactor"}
WRITERS: dict[str, Callable[[_Export, Path], str | None]] = {
    "diffusers": _write_diffusers,
    "lora": _write_lora,
    "kohya": _write_kohya,
    "checkpoint": _write_checkpoint,
}


def kohya_metadata(export: _Export, tensors: dict[str, Tensor]) -> dict[str, str]:
    """The `ss_*` entries that A1111 and kohya's tools show, all text; names of files and folders stay here."""
    config, subject = export.checkpoint.config, export.config.subject
    assert isinstance(config, LoraConfig), "only a LoRA has kohya's layout"
    num_photos = len(list((export.results.folder.dataset_dir / "photos").glob("*.png")))
    text_encoder_rate = (
        (config.text_encoder_learning_rate or config.learning_rate) if config.train_text_encoder else None
    )
    entries: dict[str, Any] = {
        **_network_module(config),
        "ss_network_dim": config.rank,
        "ss_network_alpha": float(config.alpha),
        "ss_learning_rate": config.learning_rate,
        "ss_unet_lr": config.learning_rate,
        "ss_text_encoder_lr": text_encoder_rate,
        "ss_steps": export.row.step,
        "ss_max_train_steps": config.max_train_steps,
        "ss_seed": config.seed,
        "ss_lr_scheduler": config.lr_scheduler,
        "ss_lr_warmup_steps": config.lr_warmup_steps,
        "ss_optimizer": "AdamW8bit" if config.use_8bit_adam else KOHYA_OPTIMIZERS[config.optimizer],
        "ss_max_grad_norm": config.max_grad_norm,
        "ss_mixed_precision": config.mixed_precision,
        "ss_total_batch_size": config.train_batch_size,
        "ss_gradient_accumulation_steps": config.gradient_accumulation_steps,
        "ss_gradient_checkpointing": config.gradient_checkpointing,
        "ss_min_snr_gamma": config.snr_gamma,
        "ss_noise_offset": config.noise_offset or None,
        "ss_caption_dropout_rate": config.caption_dropout_rate,
        "ss_prior_loss_weight": config.prior_loss_weight if config.with_prior_preservation else None,
        "ss_num_train_images": num_photos,
        "ss_num_reg_images": config.num_class_images if config.with_prior_preservation else 0,
        "ss_resolution": f"({subject.resolution}, {subject.resolution})",
        "ss_sd_model_name": public_name(export.config.base_model),
        "ss_base_model_version": "sd_v1",
        "ss_v2": False,
        "ss_clip_skip": None if export.config.clip_skip == 1 else export.config.clip_skip,
        "ss_output_name": export.config.name,
        "ss_tag_frequency": json.dumps({"photos": {subject.instance_prompt: num_photos}}),
        "ss_training_comment": f"dreamsweep {export.row.trial}, face similarity {export.row.face_similarity:.3f}",
        "sshs_model_hash": _hash_of_tensors(tensors),
    }
    return {**{key: str(value) for key, value in entries.items()}, **_modelspec(export, "stable-diffusion-v1/lora")}


def _network_module(config: LoraConfig) -> dict[str, Any]:
    """Which of kohya's networks the file is of; other adapters than LoRA are LyCORIS'."""
    if config.adapter == "lora":
        return {"ss_network_module": "networks.lora"}
    return {"ss_network_module": "lycoris.kohya", "ss_network_args": json.dumps({"algo": config.adapter})}


def _modelspec(export: _Export, architecture: str) -> dict[str, str]:
    """Stability's ModelSpec header, which A1111's and ComfyUI's info panels read."""
    resolution = export.config.subject.resolution
    created = export.results.record_of(export.row).created
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture,
        "modelspec.implementation": "diffusers",
        "modelspec.title": export.config.name,
        "modelspec.date": created,
        "modelspec.resolution": f"{resolution}x{resolution}",
        "modelspec.trigger_phrase": trigger_words(export.config.subject),
        "modelspec.usage_hint": export.config.subject.instance_prompt,
    }


def _hash_of_tensors(tensors: dict[str, Tensor]) -> str:
    """sha256 of a safetensors file without its header: what A1111 knows a LoRA by, whatever its metadata."""
    content = save(tensors)
    header = 8 + int.from_bytes(content[:8], "little")
    return hashlib.sha256(content[header:]).hexdigest()
