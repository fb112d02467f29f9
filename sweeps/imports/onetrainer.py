"""A run of OneTrainer's config file in our words.

Held against `TrainConfig`, `ConceptConfig` and the SD 1.5 presets of Nerogar/OneTrainer at 23df3832.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeps.imports.captions import captions_of
from sweeps.imports.nested import Nested
from sweeps.imports.run import Notes, Run, count_pictures, number_of, written
from sweeps.imports.write import lawful_name
from sweeps.wording import shorten

NO_CLIPPING = 1e9
_PRECISION = {"FLOAT_16": "fp16", "BFLOAT_16": "bf16", "FLOAT_32": "no"}
_SCHEDULERS = {
    "CONSTANT": "constant",
    "LINEAR": "linear",
    "COSINE": "cosine",
    "COSINE_WITH_HARD_RESTARTS": "cosine_with_restarts",
}
_PRODIGY = ("decouple", "use_bias_correction", "safeguard_warmup")
_LAYERS = {"attn": "attention", "attentions": "attention+ff"}
"""Layers whose names hold this -> target modules."""
_LAYER_PRESETS = {"attn-only": "attn", "attn-mlp": "attentions", "full": ""}

_OTHER_MODELS = "of other models"
_PLACE = "the run folder"
_SPEED = "memory and speed alone"
_LOOKS = "pictures are made and scored by `evaluation`"
_UNNEEDED: Mapping[str, str] = {
    **dict.fromkeys(("prior", "transformer", "unconditional_transformer", "effnet_encoder"), _OTHER_MODELS),
    **dict.fromkeys(("decoder", "decoder_text_encoder", "decoder_vqgan", "quantization", "frames"), _OTHER_MODELS),
    **{f"text_encoder_{number}{end}": _OTHER_MODELS for number in (2, 3, 4) for end in ("", "_layer_skip")},
    **{f"text_encoder_{number}_sequence_length": _OTHER_MODELS for number in (2, 3, 4)},
    **dict.fromkeys(("text_encoder_sequence_length", "dynamic_timestep_shifting", "timestep_shift"), _OTHER_MODELS),
    **dict.fromkeys(("debug_mode", "debug_dir", "workspace_dir", "cache_dir", "huggingface_cache_dir"), _PLACE),
    **dict.fromkeys(("offline_mode", "tensorboard", "tensorboard_expose", "tensorboard_always_on"), _PLACE),
    **dict.fromkeys(("tensorboard_port", "include_train_config", "prevent_overwrites", "secrets", "cloud"), _PLACE),
    **dict.fromkeys(("validation", "validate_after", "validate_after_unit"), "nothing is trained by it"),
    **dict.fromkeys(("continue_last_backup", "backup_after", "backup_after_unit", "rolling_backup"), _PLACE),
    **dict.fromkeys(("rolling_backup_count", "backup_before_save", "save_every_unit", "save_skip_first"), _PLACE),
    **dict.fromkeys(("save_filename_prefix", "output_dtype", "output_model_format", "__version"), _PLACE),
    **dict.fromkeys(("device_indexes", "gradient_reduce_precision", "fused_gradient_reduce"), "Ray places the workers"),
    **dict.fromkeys(("async_gradient_reduce", "async_gradient_reduce_buffer"), "Ray places the workers"),
    **dict.fromkeys(("train_device", "temp_device"), "Ray places the workers"),
    **dict.fromkeys(("latent_caching", "clear_cache_before_training"), "latents are always cached"),
    **dict.fromkeys(("dataloader_threads", "attention_mechanism", "enable_autocast_cache"), _SPEED),
    **dict.fromkeys(
        ("async_offloading", "only_cache", "gradient_checkpointing_async", "vae", "unet.offload_fraction"), _SPEED
    ),
    **dict.fromkeys(("fallback_train_dtype", "enable_async_offloading", "layer_offload_fraction"), _SPEED),
    **dict.fromkeys(("enable_activation_offloading", "unet.activation_offloading"), _SPEED),
    **dict.fromkeys(("text_encoder.activation_offloading", "text_encoder.offload_fraction"), _SPEED),
    **dict.fromkeys(("ema_decay", "ema_update_step_interval"), "only counts with ema, which is refused"),
    **dict.fromkeys(("embedding", "embedding_learning_rate", "embedding_weight_dtype"), "no embedding trains"),
    **dict.fromkeys(("bundle_additional_embeddings", "embeddings"), "no embedding trains"),
    **dict.fromkeys(("unet.train_embedding", "text_encoder.train_embedding"), "no embedding trains"),
    **dict.fromkeys(("unmasked_probability", "unmasked_weight"), "only counts with masked_training, which is refused"),
    **dict.fromkeys(("normalize_masked_area_loss",), "only counts with masked_training, which is refused"),
    **dict.fromkeys(
        ("oft_block_size", "lokr_dim", "lokr_decompose_factor", "lokr_dora_on_output"), "the adapter is LoRA"
    ),
    **dict.fromkeys(("lokr_vec_trick", "lora_decompose_norm_epsilon"), "the adapter is LoRA"),
    **dict.fromkeys(("huber_delta", "vb_loss_strength"), "the loss is the mean square"),
    **dict.fromkeys(("optimizer_defaults", "scheduler_params"), "the optimizer's own settings are read"),
    **dict.fromkeys(("sample_after", "sample_after_unit", "sample_skip_first", "sample_image_format"), _LOOKS),
    **dict.fromkeys(("sample_video_format", "sample_audio_format", "samples_to_tensorboard"), _LOOKS),
    **dict.fromkeys(("non_ema_sampling", "sample_definition_file_name"), _LOOKS),
    **dict.fromkeys(("unet.guidance_scale", "unet.include", "text_encoder.include"), _OTHER_MODELS),
    **dict.fromkeys(("text_encoder.guidance_scale", "layer_filter_preset"), "as the layer filter says"),
}
_NEUTRAL: Mapping[str, Any] = {
    "model_type": "STABLE_DIFFUSION_15",
    "peft_type": "LORA",
    "ema": "OFF",
    "mse_strength": 1.0,
    "loss_weight_strength": 5.0,
    "loss_scaler": "NONE",
    "learning_rate_scaler": "NONE",
    "max_noising_strength": 1.0,
    "timestep_distribution": "UNIFORM",
    "lora_weight_dtype": "FLOAT_32",
    "force_epsilon_prediction": True,
    "unet.train": True,
    "unet.stop_training_after_unit": "NEVER",
}
"""What else a file may say without a change; the UNet stops where its unit says, so the number alone is nothing."""
_OPTIMIZER_UNNEEDED: Mapping[str, str] = {
    **dict.fromkeys(("foreach", "capturable", "differentiable", "maximize", "fused"), "kernels"),
    **dict.fromkeys(("block_wise", "min_8bit_size", "optim_bits", "percentile_clipping", "is_paged"), "as it is here"),
    **dict.fromkeys(("stochastic_rounding", "quant_block_size", "bias_correction"), "weights that train are float32"),
}
_OPTIMIZERS_OWN = frozenset({"optimizer", "beta1", "beta2", "eps", "weight_decay", *_PRODIGY})
_CONCEPT_UNNEEDED: Mapping[str, str] = {
    **dict.fromkeys(("name", "seed", "concept_stats", "image_variations", "text_variations", "__version"), "a label"),
    **{f"image.{name}": "only counts where it is enabled" for name in ("resolution_override",)},
    **{
        f"image.random_{what}_max_{how}": "only counts where it is enabled"
        for what, how in (
            ("rotate", "angle"),
            ("brightness", "strength"),
            ("contrast", "strength"),
            ("saturation", "strength"),
            ("hue", "strength"),
        )
    },
    **{
        f"text.{name}": "only counts where it is enabled"
        for name in (
            *("tag_dropout_mode", "tag_dropout_probability", "tag_dropout_special_tags_mode"),
            *("tag_dropout_special_tags", "tag_dropout_special_tags_regex", "caps_randomize_mode"),
            *("caps_randomize_probability", "caps_randomize_lowercase", "tag_delimiter"),
        )
    },
}


def onetrainer_run(raw: Mapping[str, Any], folder: Path, notes: Notes) -> Run:
    """The run of a config file; problems are left in `notes`.

    Args:
        raw: the file's settings.
        folder: where the file lies; the files that it names may lie beside it.
        notes: takes what is to be said.
    """
    top: dict[str, Any] = {}
    concepts, samples = raw.get("concepts"), raw.get("samples")
    config = Nested(
        {key: value for key, value in raw.items() if key not in ("concepts", "samples", "optimizer")}, notes
    )
    method = {"LORA": "lora", "FINE_TUNE": "dreambooth"}.get(config.text("training_method", "FINE_TUNE"))
    if method is None:
        notes.problem(f"training_method {shorten(raw['training_method'])} (there are LORA and FINE_TUNE)")
        method = "lora"
    base_model = config.text("base_model_name", "stable-diffusion-v1-5/stable-diffusion-v1-5")
    file = config.text("concept_file_name", "training_concepts/concepts.json")
    concept = _concept(concepts if concepts is not None else _list_in(file, folder, notes), notes)
    if concepts is not None and "concept_file_name" in raw:
        notes.unneeded["concept_file_name"] = "the concepts are in the file itself"
    subject, settings, counted = _photos(concept, notes)
    subject["resolution"] = _side(config.take("resolution", "512"), notes)
    _length(config, settings, counted, notes)
    _training(config, settings, notes)
    _optimizer(raw.get("optimizer"), settings, notes)
    _text_encoder(config, settings, method, notes)
    if method == "lora":
        _adapter(config, settings, top, notes)
    else:
        for name in ("lora_rank", "lora_alpha", "lora_model_name", "layer_filter"):
            if name == "layer_filter" and raw.get(name):
                notes.problem(f"layer_filter {shorten(raw[name])} (all layers of the UNet train)")
            config.take(name)
        if config.take("unet.weight_dtype", "FLOAT_32") != "FLOAT_32":
            notes.problem("unet.weight_dtype (weights that train are float32)")
    if config.text("unet.stop_training_after_unit", "NEVER") != "NEVER":
        notes.problem("unet.stop_training_after (the UNet trains to the end)")
    config.take("unet.stop_training_after")
    for part in ("unet", "text_encoder", "vae"):
        if name := config.take(f"{part}.model_name"):
            notes.problem(f"{part}.model_name {shorten(name)} (all of the model is base_model)")
        config.take(f"{part}.weight_dtype")
    skip = config.number("text_encoder_layer_skip", 0, int)
    if skip:
        top["clip_skip"] = skip + 1
    if config.take("aspect_ratio_bucketing", True):
        notes.differs.append("aspect_ratio_bucketing: photos are cut to squares")
    notes.minded.append("seed: OneTrainer's numbers are of its own; here it is 0")
    destination = config.text("output_model_destination", "models/model.safetensors")
    every = 0
    if raw.get("save_every_unit") == "STEP":
        every = config.number("save_every", 0, int)
    elif config.take("save_every"):
        notes.unneeded["save_every"] = "the run's end is scored"
    config.account(_UNNEEDED, _NEUTRAL)
    always = {"train_batch_size", "lora_alpha", "target_modules", "train_text_encoder"}
    return Run(
        trainer="OneTrainer",
        method=method,
        name=lawful_name(str(destination).removesuffix(".safetensors"), "onetrainer"),
        base_model=base_model,
        subject=subject,
        settings=written(settings, always, method),
        notes=notes,
        top=top,
        prompts=[str(sample.get("prompt") or "") for sample in samples if isinstance(sample, dict)]
        if isinstance(samples, list)
        else [],
        score_every=("save_every", every),
    )


# --- photos -----------------------------------------------------------------------------------------------------------


def _list_in(file: str, folder: Path, notes: Notes) -> list[Any]:
    """What a file of concepts holds, at its place or near the config file."""
    places = [Path(file).expanduser(), *(parent / file for parent in (folder, *folder.absolute().parents[:2]))]
    path = next((place for place in (*places, folder / Path(file).name) if place.is_file()), None)
    if path is None:
        notes.problem(f"concept_file_name {file}: not here, and it says where the photos are")
        return []
    try:
        held = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError) as error:
        notes.problem(f"concept_file_name {path}: must be JSON: {str(error).splitlines()[0]}")
        return []
    return held if isinstance(held, list) else []


def _concept(concepts: Any, notes: Notes) -> dict[str, Any]:
    enabled = [
        each
        for each in (concepts if isinstance(concepts, list) else [])
        if isinstance(each, dict) and each.get("enabled", True)
    ]
    training = [each for each in enabled if each.get("type", "STANDARD") != "VALIDATION"]
    if len(training) != 1:
        if concepts or not notes.problems:
            notes.problem(f"concepts to train must be one, got {len(training)} (a sweep is of one person)")
        return {}
    return training[0]


def _photos(concept: Mapping[str, Any], notes: Notes) -> tuple[dict[str, Any], dict[str, Any], tuple[str, int]]:
    read = Nested(concept, notes)
    path = read.text("path", "")
    settings: dict[str, Any] = {"seed": 0}
    repeats = read.number("balancing", read.number("repeats", 1.0))
    if read.take("balancing_strategy", "REPEATS") != "REPEATS":
        notes.problem("a concept's balancing_strategy (an epoch shows each photo as often)")
    if repeats != int(repeats):
        notes.problem(f"a concept's balancing {repeats:g} (photos are repeated whole times)")
    if read.take("type", "STANDARD") != "STANDARD":
        notes.problem("a concept's type PRIOR_PREDICTION (prior_from: base_model asks of the photos themselves)")
    subject: dict[str, Any] = {"photos": path, "instance_prompt": _words(read, path, concept, notes)}
    if read.take("image.enable_crop_jitter", True):
        notes.differs.append("enable_crop_jitter: photos are cut once, before the first step")
    if read.take("image.enable_random_flip", False):
        subject["random_flip"] = True
    if read.take("text.enable_tag_shuffling", False):
        settings["shuffle_caption"] = True
        settings["keep_tokens"] = read.number("text.keep_tags_count", 1, int)
        if read.text("text.tag_delimiter", ",").strip() != ",":
            notes.problem("text.tag_delimiter (a caption's parts stand between commas)")
    for name in ("enabled", "text.keep_tags_count", "text.prompt_path"):
        read.take(name)
    read.account(_CONCEPT_UNNEEDED, {"loss_weight": 1.0}, "a concept's ")
    subject.update({"resolution": 512, "crop": "center", "held_out_photos": 0})
    return subject, settings, (path, int(repeats))


def _words(read: Nested, path: str, concept: Mapping[str, Any], notes: Notes) -> str:
    """The instance prompt: the concept's one prompt, or the captions', where each photo has one."""
    source = read.text("text.prompt_source", "sample")
    if source == "concept":
        file = Path(str((concept.get("text") or {}).get("prompt_path") or "")).expanduser()
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except OSError:
            notes.problem(f"text.prompt_path {file}: not here, and it says what the photos are called")
            return ""
        if len(lines) != 1:
            notes.problem(f"text.prompt_path {file}: must hold one prompt, got {len(lines)}")
        return lines[0] if lines else ""
    if source != "sample":
        notes.problem(f"text.prompt_source {source} (captions are .txt files beside the photos)")
        return ""
    captions = captions_of(path, ".txt", notes) if path else None
    if captions is None:
        if path:
            notes.problem(f"path {path}: not here, and the captions beside the photos say what they are called")
        return ""
    if None in captions:
        notes.problem(f"path {path}: photos without a caption have no words there, and the instance prompt here")
    words = next((caption for caption in captions if caption), "")
    notes.minded.append(
        "instance_prompt: the first photo's caption; it stands for photos without one, and there is none"
    )
    return words


def _side(resolution: Any, notes: Notes) -> int:
    try:
        return int(str(resolution))
    except ValueError:
        notes.problem(f"resolution {shorten(resolution)} (photos are squares of one size)")
        return 512


# --- training ---------------------------------------------------------------------------------------------------------


def _length(config: Nested, settings: dict[str, Any], counted: tuple[str, int], notes: Notes) -> None:
    path, repeats = counted
    epochs, batch = config.number("epochs", 100, int), config.number("batch_size", 1, int)
    accumulated = config.number("gradient_accumulation_steps", 1, int)
    settings.update({"max_train_steps": 1, "train_batch_size": batch, "gradient_accumulation_steps": accumulated})
    settings["updates_per_epoch"] = None
    if not path or batch < 1 or accumulated < 1:
        return
    photos = number_of(f"epochs count the photos of {path}", lambda: count_pictures(path), notes)
    if photos is None:
        return
    shown = photos * repeats
    batches = shown // batch
    if batch > 1 and shown % batch:
        notes.problem(
            f"batch_size {batch} with {shown} pictures an epoch (what fills no batch is left out there, by sizes)"
        )
        return
    if batch > 1:
        notes.minded.append("batches are taken to be full; photos of several sizes would have fewer of them there")
    steps = epochs * batches // accumulated
    settings["max_train_steps"], settings["updates_per_epoch"] = steps, batches / accumulated
    notes.arithmetic.append(
        f"max_train_steps {steps} = {epochs} epochs x {photos} photos x {repeats} repeats / batches of {batch}"
        + (f" / {accumulated} accumulated" if accumulated > 1 else "")
    )


def _training(config: Nested, settings: dict[str, Any], notes: Notes) -> None:
    rate = config.number("learning_rate", 3e-6)
    settings["learning_rate"] = config.number("unet.learning_rate", rate)
    settings["base_rate"] = rate
    precision = config.text("train_dtype", "FLOAT_16")
    settings["mixed_precision"] = _PRECISION.get(precision, "no")
    if precision not in _PRECISION:
        notes.problem(f"train_dtype {precision} (there are {', '.join(_PRECISION)})")
    checkpointing = config.take("unet.gradient_checkpointing", config.take("gradient_checkpointing", True))
    settings["gradient_checkpointing"] = checkpointing not in (False, "OFF")
    config.take("text_encoder.gradient_checkpointing")
    clip = config.number("clip_grad_norm", 1.0)
    settings["max_grad_norm"] = clip or NO_CLIPPING
    if offset := config.number("offset_noise_weight", 0.0):
        settings["noise_offset"] = offset
    if config.take("compile", False):
        settings["compile"] = True
    weighing, strength = config.text("loss_weight_fn", "CONSTANT"), config.number("loss_weight_strength", 5.0)
    if weighing == "MIN_SNR_GAMMA":
        settings["snr_gamma"] = strength
    elif weighing != "CONSTANT":
        notes.problem(f"loss_weight_fn {weighing} (of weights for the loss there is MIN_SNR_GAMMA)")
    _schedule(config, settings, notes)


def _schedule(config: Nested, settings: dict[str, Any], notes: Notes) -> None:
    named = config.text("learning_rate_scheduler", "CONSTANT")
    scheduler = _SCHEDULERS.get(named, "constant")
    if named not in _SCHEDULERS:
        notes.problem(f"learning_rate_scheduler {named} (there are {', '.join(_SCHEDULERS)})")
    warmup = config.number("learning_rate_warmup_steps", 200.0)
    steps, accumulated = settings["max_train_steps"], settings["gradient_accumulation_steps"]
    warmup_steps = int(warmup / accumulated) if warmup > 1 else int(warmup * steps) if warmup > 0 else 0
    if warmup_steps and scheduler == "constant":
        scheduler = "constant_with_warmup"
        notes.arithmetic.append(f"lr_scheduler constant_with_warmup: {warmup_steps} steps of warm-up come first there")
    settings["lr_scheduler"], settings["lr_warmup_steps"] = scheduler, warmup_steps
    cycles = config.number("learning_rate_cycles", 1.0)
    if scheduler == "cosine_with_restarts":
        settings["lr_num_cycles"] = int(cycles)
        if cycles != int(cycles):
            notes.problem(f"learning_rate_cycles {cycles:g} (whole cycles)")
    if config.number("learning_rate_min_factor", 0.0) and scheduler not in ("constant", "constant_with_warmup"):
        notes.problem("learning_rate_min_factor (schedules fall to 0)")


def _optimizer(raw: Any, settings: dict[str, Any], notes: Notes) -> None:
    read = Nested(raw if isinstance(raw, dict) else {"optimizer": raw}, notes)
    name = read.text("optimizer", "ADAMW")
    settings["adam_weight_decay"] = read.number("weight_decay", 1e-2 if name.startswith("ADAMW") else 0.0)
    prodigy = {each: read.take(each, False) for each in _PRODIGY}
    if name in ("ADAMW", "ADAMW_8BIT", "PRODIGY"):
        settings["adam_beta1"] = read.number("beta1", 0.9)
        settings["adam_beta2"] = read.number("beta2", 0.999)
        settings["adam_epsilon"] = read.number("eps", 1e-8)
    neutral: dict[str, Any] = {}
    if name == "ADAMW_8BIT":
        settings["use_8bit_adam"] = True
    elif name == "PRODIGY":
        settings["optimizer"] = "prodigy"
        neutral = {"d0": 1e-6, "d_coef": 1.0, "slice_p": 11, "growth_rate": float("inf")}
        if off := [each for each, value in prodigy.items() if not value]:
            notes.problem(f"PRODIGY without {', '.join(off)} (so it trains here)")
    elif name == "ADAFACTOR":
        settings["optimizer"] = "adafactor"
        neutral = {"eps": 1e-30, "eps2": 1e-3, "clip_threshold": 1.0, "decay_rate": -0.8}
    elif name != "ADAMW":
        notes.problem(f"optimizer {name} (there are ADAMW, ADAMW_8BIT, PRODIGY and ADAFACTOR)")
    whole_record = {"adam_w_mode", "weight_decay_by_lr", "split_groups", "split_groups_mean", "factored", "d_limiter"}
    whole_record |= {"factored_fp32", "use_stableadamw", "use_schedulefree"}
    others = dict.fromkeys(whole_record, "of other optimizers")
    read.account({**_OPTIMIZER_UNNEEDED, **others}, neutral, "optimizer.")


def _text_encoder(config: Nested, settings: dict[str, Any], method: str, notes: Notes) -> None:
    updates, base_rate = settings.pop("updates_per_epoch"), settings.pop("base_rate")
    trains = bool(config.take("text_encoder.train", True))
    rate = config.number("text_encoder.learning_rate", base_rate)
    unit = config.text("text_encoder.stop_training_after_unit", "EPOCH")
    after = config.number("text_encoder.stop_training_after", 30, int)
    settings["train_text_encoder"] = trains
    if not trains:
        return
    if method == "dreambooth" and config.take("text_encoder.weight_dtype", "FLOAT_32") != "FLOAT_32":
        notes.problem("text_encoder.weight_dtype (weights that train are float32)")
    if rate != settings["learning_rate"]:
        settings["text_encoder_learning_rate"] = rate
    if unit == "NEVER" or updates is None:
        return
    if unit not in ("EPOCH", "STEP"):
        notes.problem(f"text_encoder.stop_training_after_unit {unit} (there are EPOCH, STEP and NEVER)")
        return
    accumulated = settings["gradient_accumulation_steps"]
    stop = int(after * updates) if unit == "EPOCH" else after // accumulated
    if 0 < stop < settings["max_train_steps"]:
        settings["stop_text_encoder_training"] = stop
        notes.arithmetic.append(f"stop_text_encoder_training {stop}: after {after} {unit.lower()}s")
    elif stop <= 0:
        settings["train_text_encoder"] = False


def _adapter(config: Nested, settings: dict[str, Any], top: dict[str, Any], notes: Notes) -> None:
    rank, alpha = config.number("lora_rank", 16, int), config.number("lora_alpha", 1.0)
    settings["rank"], settings["lora_alpha"] = rank, alpha
    notes.arithmetic.append(
        f"lora_alpha {alpha:g} at rank {rank}: updates are scaled by {alpha / max(1, rank):.3g}, as there"
    )
    notes.differs.append("adapters begin from other random numbers: A uniform there, normal here")
    layers = config.text("layer_filter", "")
    preset = config.text("layer_filter_preset", "full")
    if layers:
        notes.unneeded["layer_filter_preset"] = "layer_filter goes first"
    layers = layers or _LAYER_PRESETS.get(preset, "")
    if layers not in _LAYERS:
        notes.problem(f"layer_filter {shorten(layers)} (there are attn and attentions)")
    settings["target_modules"] = _LAYERS.get(layers, "attention")
    if layers == "attn" and settings["train_text_encoder"]:
        notes.problem("layer_filter attn with a text encoder that trains (all of its layers have adapters there)")
    if file := config.take("lora_model_name"):
        top["initial_weights"] = file
    if config.take("lora_decompose", False):
        settings["use_dora"] = True
        if config.take("lora_decompose_output_axis", False):
            notes.problem("lora_decompose_output_axis (magnitudes are the columns')")
    if config.number("dropout_probability", 0.0):
        notes.problem("dropout_probability (it drops what is between A and B; lora_dropout drops what enters A)")
    config.take("unet.dropout_probability")
    config.take("text_encoder.dropout_probability")
