"""A run of ai-toolkit's config file in our words: a job of one `sd_trainer` process on Stable Diffusion 1.5.

Held against `toolkit/config_modules.py`, `lora_special.py` and `optimizer.py` of ostris/ai-toolkit at 27a03a91.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sweeps.imports.captions import captions_of
from sweeps.imports.nested import Nested
from sweeps.imports.run import Notes, Run, say_of_seed, written
from sweeps.imports.write import lawful_name
from sweeps.wording import shorten

EPSILON = 1e-6
"""What ai-toolkit gives to every AdamW and Prodigy."""
WARMUP_STEPS = 1000
"""Of constant_with_warmup, where none are said."""
_TRAINERS = frozenset({"sd_trainer", "ui_trainer", "diffusion_trainer"})
_PRECISION = {
    **dict.fromkeys(("fp32", "float32", "float"), "no"),
    **dict.fromkeys(("fp16", "float16"), "fp16"),
    **dict.fromkeys(("bf16", "bfloat16"), "bf16"),
}
_SCHEDULERS = frozenset({"constant", "constant_with_warmup", "cosine"})
_PRODIGY = {"decouple": True, "use_bias_correction": True, "safeguard_warmup": True}

_LOOKS = "pictures are made and scored by `evaluation`"
_SAVING = "what is saved is not what is trained"
_PLACE = "the run folder"
_SPEED = "memory and speed alone"
_FLOW = "for models that match flows"
_UNNEEDED: Mapping[str, str] = {
    **dict.fromkeys(("save", "meta", "logging"), _SAVING),
    "sample": _LOOKS,
    **dict.fromkeys(("training_folder", "performance_log_every", "sqlite_db_path", "device"), _PLACE),
    **dict.fromkeys(("train.skip_first_sample", "train.force_first_sample", "train.disable_sampling"), _LOOKS),
    **dict.fromkeys(("train.xformers", "train.sdp", "train.attention_backend", "train.unload_text_encoder"), _SPEED),
    **dict.fromkeys(("train.cache_text_embeddings", "model.low_vram", "model.dtype", "model.vae_dtype"), _SPEED),
    **dict.fromkeys(("model.te_dtype", "model.qtype", "model.qtype_te", "model.auto_memory"), _SPEED),
    **dict.fromkeys(("train.timestep_type", "train.linear_timesteps", "train.linear_timesteps2"), _FLOW),
    "train.bypass_guidance_embedding": _FLOW,
    "network.transformer_only": "of other models",
    "network.lokr_full_rank": "the adapter is LoRA",
    "network.lokr_factor": "the adapter is LoRA",
}
_NEUTRAL: Mapping[str, Any] = {
    "train.train_unet": True,
    "train.noise_scheduler": "ddpm",
    "train.content_or_style": "balanced",
    "train.max_denoising_steps": 999,
    "train.num_train_timesteps": 1000,
    "train.loss_type": "mse",
    "train.loss_target": "noise",
    "train.noise_multiplier": 1.0,
    "train.reg_weight": 1.0,
    "train.diff_output_preservation_multiplier": 1.0,
    "train.diff_output_preservation_class": "person",
    "train.blank_prompt_preservation_multiplier": 1.0,
    "train.gradient_accumulation_steps": 1,
    "train.switch_boundary_every": 1,
    "train.ema_config.ema_decay": 0.99,
    "network.type": "lora",
    "model.arch": "sd1",
}
_DATASET_UNNEEDED: Mapping[str, str] = {
    **dict.fromkeys(("cache_latents", "cache_latents_to_disk", "cache_text_embeddings"), "latents are always cached"),
    **dict.fromkeys(("num_repeats", "bucket_tolerance", "type", "num_frames", "control_path"), "of one folder"),
    "shrink_video_to_frames": "of videos",
    "fps": "of videos",
    "do_i2v": "of videos",
}
_DATASET_NEUTRAL: Mapping[str, Any] = {"network_weight": 1.0, "scale": 1.0, "full_size_control_images": True}


def ai_toolkit_run(raw: Mapping[str, Any], notes: Notes) -> Run:
    """The run of a job file; problems are left in `notes`."""
    top: dict[str, Any] = {}
    job = raw["config"]
    processes = job.get("process") or []
    if not isinstance(processes, list) or len(processes) != 1 or not isinstance(processes[0], dict):
        notes.problem("process must be one")
        processes = [{}]
    process = dict(processes[0])
    if str(process.get("type", "sd_trainer")) not in _TRAINERS:
        notes.problem(f"process.type {shorten(process.get('type'))} (there is sd_trainer)")
    datasets = process.pop("datasets", None) or []
    sample = process.pop("sample", None) or {}
    has_network = bool(process.get("network"))
    read = Nested({key: value for key, value in process.items() if key != "type"}, notes)
    trigger = read.text("trigger_word", "") or None
    method = "lora" if has_network else "dreambooth"
    subject, settings = _photos(datasets, trigger, notes)
    _training(read, settings, notes)
    if has_network:
        _adapter(read, settings, top, notes)
    base_model = read.text("model.name_or_path", "")
    if not base_model:
        notes.problem("model.name_or_path must be given")
    seed = read.number("training_seed", None, int)
    settings["seed"] = say_of_seed(seed, notes)
    every = read.number("save.save_every", 1000, int)
    read.account(_UNNEEDED, _NEUTRAL)
    if sample:
        notes.unneeded["sample"] = _LOOKS
    always = {"train_batch_size", "train_text_encoder", "lora_alpha", "target_modules"}
    return Run(
        trainer="ai-toolkit",
        method=method,
        name=lawful_name(str(job.get("name") or ""), "ai-toolkit"),
        base_model=base_model,
        subject=subject,
        settings=written(settings, always, method),
        notes=notes,
        top=top,
        prompts=_prompts(sample, trigger),
        score_every=("save.save_every", every),
    )


def _photos(datasets: Any, trigger: str | None, notes: Notes) -> tuple[dict[str, Any], dict[str, Any]]:
    folders = [each for each in datasets if isinstance(each, dict)] if isinstance(datasets, list) else []
    if len(folders) != 1:
        notes.problem(f"datasets must be one, got {len(folders)} (photos are in one folder)")
    read = Nested(folders[0] if folders else {}, notes)
    path = read.text("folder_path", read.text("dataset_path", ""))
    settings: dict[str, Any] = {}
    if rate := read.number("caption_dropout_rate", 0.0):
        settings["caption_dropout_rate"] = rate
    if read.take("shuffle_tokens", False):
        settings["shuffle_caption"] = True
        settings["keep_tokens"] = read.number("keep_tokens", 0, int)
    read.take("keep_tokens")
    settings["batch_of_its_own"] = read.number("batch_size", None, int)
    suffix = "." + str(read.take("caption_ext", "txt")).lstrip(".")
    trigger = read.text("trigger_word", trigger or "") or None
    words = read.text("default_caption", "") or trigger
    sides = read.take("resolution", 512)
    side = sides[0] if isinstance(sides, list) and len(sides) == 1 else sides
    if not isinstance(side, int):
        notes.problem(f"datasets.resolution {shorten(sides)} (photos are squares of one size)")
        side = 512
    subject: dict[str, Any] = {
        "photos": path,
        "instance_prompt": _instance_prompt(path, suffix, words, trigger, notes),
        "resolution": side,
        "crop": "center",
        "held_out_photos": 0,
    }
    if read.take("flip_x", False):
        subject["random_flip"] = True
    if read.take("buckets", True):
        notes.differs.append("datasets.buckets: photos are cut to squares")
    for name in ("random_crop", "random_scale"):
        if read.take(name, False):
            notes.differs.append(f"datasets.{name}: photos are cut once, before the first step")
    read.account(_DATASET_UNNEEDED, _DATASET_NEUTRAL, "datasets.")
    return subject, settings


def _instance_prompt(path: str, suffix: str, words: str | None, trigger: str | None, notes: Notes) -> str:
    captions = captions_of(path, suffix, notes) if path else None
    if captions is None and path:
        notes.minded.append(f"folder_path {path!r} is not here: its captions were not looked at")
    given = [caption for caption in captions or [] if caption]
    if any("[trigger]" in caption or "[name]" in caption for caption in given):
        notes.problem("captions with [trigger] (write the word itself)")
    if trigger and any(trigger.casefold() not in caption.casefold() for caption in given):
        notes.problem(f"captions without {trigger!r}, which ai-toolkit puts before them (write it there)")
    if words:
        return words.replace("[trigger]", trigger or "[trigger]")
    if given and None not in (captions or []):
        notes.minded.append(
            "instance_prompt: the first photo's caption; it stands for photos without one, and there is none"
        )
        return given[0]
    notes.problem("trigger_word or default_caption must be given: nothing names the person")
    return ""


def _training(read: Nested, settings: dict[str, Any], notes: Notes) -> None:
    rate = read.number("train.lr", 1e-6)
    settings["learning_rate"] = read.number("train.unet_lr", rate)
    settings["max_train_steps"] = read.number("train.steps", 1000, int)
    batch = read.number("train.batch_size", 1, int)
    settings["train_batch_size"] = settings.pop("batch_of_its_own") or batch
    settings["gradient_accumulation_steps"] = read.number("train.gradient_accumulation", 1, int)
    settings["gradient_checkpointing"] = bool(read.take("train.gradient_checkpointing", True))
    settings["max_grad_norm"] = read.number("train.max_grad_norm", 1.0)
    precision = read.text("train.dtype", "fp32")
    settings["mixed_precision"] = _PRECISION.get(precision, "no")
    if precision not in _PRECISION:
        notes.problem(f"train.dtype {shorten(precision)} (there are fp32, fp16 and bf16)")
    if not read.take("train.train_unet", True):
        notes.problem("train.train_unet false (the UNet always trains)")
    trains = bool(read.take("train.train_text_encoder", False))
    settings["train_text_encoder"] = trains
    text_rate = read.number("train.text_encoder_lr", rate)
    if trains and text_rate != settings["learning_rate"]:
        settings["text_encoder_learning_rate"] = text_rate
    gamma, other = read.number("train.min_snr_gamma", None), read.number("train.snr_gamma", None)
    if gamma:
        settings["snr_gamma"] = gamma
    if other:
        notes.problem("train.snr_gamma (weights without a bound; min_snr_gamma has one)")
    if offset := read.number("train.noise_offset", 0.0):
        settings["noise_offset"] = offset
    if read.take("train.ema_config.use_ema", False):
        notes.problem("train.ema_config.use_ema (weights are not averaged)")
    read.take("train.ema_config.ema_decay")
    if read.take("model.compile", False):
        settings["compile"] = True
    _optimizer(read, settings, notes)
    _schedule(read, settings, notes)


def _optimizer(read: Nested, settings: dict[str, Any], notes: Notes) -> None:
    named = str(read.text("train.optimizer", "adamw")).lower()
    decay = read.number("train.optimizer_params.weight_decay", 1e-2 if named.startswith("adamw") else 0.0)
    betas = read.take("train.optimizer_params.betas", [0.9, 0.999])
    settings["adam_weight_decay"] = decay
    if named in ("adamw", "adamw8bit", "prodigy"):
        settings["adam_epsilon"] = EPSILON
        if isinstance(betas, list) and len(betas) == 2:
            settings["adam_beta1"], settings["adam_beta2"] = betas
        else:
            notes.problem(f"train.optimizer_params.betas must be two numbers, got {shorten(betas)}")
    if named == "adamw8bit":
        settings["use_8bit_adam"] = True
    elif named == "prodigy":
        settings["optimizer"] = "prodigy"
        settings["learning_rate"] = settings["learning_rate"] if settings["learning_rate"] >= 0.1 else 1.0
        off = [
            name
            for name, on in _PRODIGY.items()
            if read.take(f"train.optimizer_params.{name}", name == "decouple") != on
        ]
        if off:
            notes.problem(f"prodigy without {', '.join(off)} in optimizer_params (so it trains here)")
        if "text_encoder_learning_rate" in settings:
            notes.problem("prodigy with two learning rates (one is for both)")
    elif named != "adamw":
        notes.problem(f"train.optimizer {named} (there are adamw, adamw8bit and prodigy)")


def _schedule(read: Nested, settings: dict[str, Any], notes: Notes) -> None:
    named = read.text("train.lr_scheduler", "constant")
    if named not in _SCHEDULERS:
        notes.problem(f"train.lr_scheduler {shorten(named)} (its {', '.join(sorted(_SCHEDULERS))} are ours)")
        return
    settings["lr_scheduler"] = named
    warmup = read.number("train.lr_scheduler_params.num_warmup_steps", WARMUP_STEPS, int)
    if named == "constant_with_warmup":
        settings["lr_warmup_steps"] = warmup


def _adapter(read: Nested, settings: dict[str, Any], top: dict[str, Any], notes: Notes) -> None:
    rank = read.number("network.rank", read.number("network.linear", 4, int), int)
    read.take("network.linear")
    alpha = read.number("network.linear_alpha", read.number("network.alpha", 1.0))
    read.take("network.alpha")
    settings["rank"], settings["lora_alpha"] = rank, float(alpha)
    notes.arithmetic.append(
        f"lora_alpha {alpha:g} at rank {rank}: updates are scaled by {alpha / max(1, rank):.3g}, as there"
    )
    notes.differs.append("adapters begin from other random numbers: A uniform there, normal here")
    convolutions = read.number("network.conv", None, int)
    read.take("network.conv_alpha")
    only = read.take("network.network_kwargs.only_if_contains")
    if convolutions is None and only == ["attentions"] and not settings["train_text_encoder"]:
        settings["target_modules"] = "attention+ff"
    else:
        notes.problem(
            "network: without network_kwargs.only_if_contains: [attentions], or with conv, it adapts time embeddings "
            "and the first and last layer too"
        )
    if read.number("network.dropout", 0.0):
        notes.problem("network.dropout (it drops what is between A and B; lora_dropout drops what enters A)")
    if file := read.take("network.pretrained_lora_path"):
        top["initial_weights"] = file


def _prompts(sample: Any, trigger: str | None) -> list[str]:
    section = sample if isinstance(sample, dict) else {}
    samples = section.get("samples")
    items = [each.get("prompt") for each in samples if isinstance(each, dict)] if isinstance(samples, list) else []
    prompts = section.get("prompts") or items
    return [
        prompt.replace("[trigger]", trigger or "")
        for prompt in (prompts if isinstance(prompts, list) else [])
        if isinstance(prompt, str)
    ]
