"""A run of kohya's `train_network.py` (LoRA) or `train_db.py` (full DreamBooth) in our words.

Held against kohya-ss/sd-scripts at 48d368f (v0.10.1).
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeps.imports.flags import KOHYA, KOHYA_SCRIPTS, NETWORK, flags_of
from sweeps.imports.kohya_photos import Photos, photos_of
from sweeps.imports.launch import Launch
from sweeps.imports.run import Notes, Run, keys_beside, say_of_seed, written
from sweeps.imports.write import lawful_name
from sweeps.wording import shorten

NO_CLIPPING = 1e9
"""Gradients' norm is never more: kohya's `max_grad_norm` of 0 clips nothing."""
_NO_CHANGE: Mapping[str, object] = {"min_timestep": 0, "max_timestep": 1000, "max_token_length": 75, "clip_skip": 1}
"""Values that say what is done in any case."""
_BY_NAME = {
    "seed": "seed",
    "gradient_checkpointing": "gradient_checkpointing",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "mixed_precision": "mixed_precision",
    "lr_scheduler": "lr_scheduler",
    "lr_scheduler_num_cycles": "lr_num_cycles",
    "lr_scheduler_power": "lr_power",
    "min_snr_gamma": "snr_gamma",
    "torch_compile": "compile",
    "max_grad_norm": "max_grad_norm",
}
_PRODIGY = {"decouple": True, "use_bias_correction": True, "safeguard_warmup": True}
"""As Prodigy trains here; kohya leaves them to prodigyopt, where the last two are off."""
_ADAFACTOR = {"relative_step": False, "scale_parameter": False, "warmup_init": False}
"""As Adafactor trains here, at a rate that is given."""


def kohya_run(
    script: str, given: Mapping[str, Any], launch: Launch, notes: Notes, dataset: Mapping[str, Any] | None = None
) -> Run:
    """The run of a script with the settings that its command and config file gave; problems are left in `notes`.

    Args:
        script: `train_network` or `train_db`.
        given: setting -> value.
        launch: how it was started.
        notes: takes what is to be said.
        dataset: what the dataset config holds; None where the folders' names say it.
    """
    flags = flags_of(KOHYA, script)
    values = {name: given.get(name, flag.default) for name, flag in flags.items()}
    for name, value in given.items():
        if name in _NO_CHANGE and value == _NO_CHANGE[name]:  # pictures are made as they were trained
            notes.unneeded[name] = "it says what is done in any case"
            values[name] = None
        else:
            notes.fate(flags[name], value)
    values["caption_extension"] = values["caption_extention"] or values["caption_extension"]
    if not values["pretrained_model_name_or_path"]:
        notes.problem("pretrained_model_name_or_path must be given")
    photos = photos_of(values, dataset, notes)
    _name_what_counts_no_more(given, values, photos, notes)
    settings = {ours: values[theirs] for theirs, ours in _BY_NAME.items() if values.get(theirs) is not None}
    settings["snr_gamma"] = values["min_snr_gamma"] or None  # 0 weighs nothing there
    settings["seed"] = say_of_seed(values["seed"], notes)
    settings.update(photos.settings)
    _steps(values, settings, photos, launch, notes)
    _optimizer(values, settings, notes)
    _rates(script, values, settings, notes)
    _schedule(values, settings, launch, notes)
    if script == NETWORK:
        _adapter(values, settings, notes)
    if values["noise_offset"]:
        settings["noise_offset"] = values["noise_offset"]
    if not values["max_grad_norm"]:
        settings["max_grad_norm"] = NO_CLIPPING
        notes.arithmetic.append(f"max_grad_norm {NO_CLIPPING:g}: 0 clips nothing there")
    _with_class_pictures(values, settings, photos, notes)
    if launch.processes > 1:
        settings["train_batch_size"] *= launch.processes
        notes.arithmetic.append(f"train_batch_size {settings['train_batch_size']}: of {launch.processes} processes")
    method = KOHYA_SCRIPTS[script]
    always = {"lora_alpha", "target_modules", "train_batch_size", "train_text_encoder"}
    said = {ours for theirs, ours in _BY_NAME.items() if theirs in given} | always
    return Run(
        trainer=f"kohya {script}.py",
        method=method,
        name=lawful_name(given.get("output_name") or given.get("output_dir"), "kohya"),
        base_model=values["pretrained_model_name_or_path"] or "",
        subject=photos.subject,
        settings=written(settings, said, method),
        notes=notes,
        top=keys_beside(flags, values),
        prompts=_sample_prompts(values["sample_prompts"], notes),
        score_every=("save_every_n_steps", values["save_every_n_steps"] or 0),
    )


def _name_what_counts_no_more(
    given: Mapping[str, Any], values: Mapping[str, Any], photos: Photos, notes: Notes
) -> None:
    """Settings that another setting of the run makes nothing of."""
    reasons = {
        "max_train_steps": "max_train_epochs goes first" if values["max_train_epochs"] is not None else None,
        "train_batch_size": "the dataset config's batch_size goes first"
        if photos.batch_size != values["train_batch_size"]
        else None,
        "resolution": "the dataset config's goes first"
        if str(photos.subject.get("resolution")) not in str(values["resolution"])
        else None,
        "prior_loss_weight": None if photos.class_pictures else "only counts with reg pictures",
        "text_encoder_lr": "network_train_unet_only" if values.get("network_train_unet_only") else None,
        "learning_rate": "unet_lr and text_encoder_lr go first"
        if values.get("unet_lr") is not None
        and (values.get("text_encoder_lr") is not None or values.get("network_train_unet_only"))
        else None,
        "use_8bit_adam": "optimizer_type goes first" if values["optimizer_type"] else None,
        "stop_text_encoder_training": "the text encoder trains to the end"
        if (values.get("stop_text_encoder_training") or 0) >= values["max_train_steps"]
        else None,
    }
    notes.unneeded.update({name: why for name, why in reasons.items() if why and name in given})


# --- length -----------------------------------------------------------------------------------------------------------


def _steps(values: Mapping[str, Any], settings: dict[str, Any], photos: Photos, launch: Launch, notes: Notes) -> None:
    epochs = values["max_train_epochs"]
    if epochs is None:
        settings["max_train_steps"] = values["max_train_steps"]
        return
    settings["max_train_steps"] = 1
    shown = photos.num_shown(notes, "max_train_epochs counts")
    accumulated = values["gradient_accumulation_steps"]
    if shown is None or not accumulated:
        return
    if photos.batch_size > 1 and photos.by_buckets:
        notes.problem("max_train_epochs in batches of several and buckets: give max_train_steps, as the log printed it")
        return
    batches = math.ceil(shown.total / photos.batch_size)
    updates = math.ceil(batches / launch.processes / accumulated)
    settings["max_train_steps"] = epochs * updates
    division = f" / {accumulated} accumulated" if accumulated > 1 else ""
    division += f" / {launch.processes} processes" if launch.processes > 1 else ""
    notes.arithmetic.append(
        f"max_train_steps {epochs * updates} = {epochs} epochs x {updates} steps: {shown.text} in batches of "
        f"{photos.batch_size}{division}"
    )


def _with_class_pictures(values: Mapping[str, Any], settings: dict[str, Any], photos: Photos, notes: Notes) -> None:
    """Kohya shuffles class pictures among the photos; here each batch has as many of them as of photos.

    So its batch of 2B is our batch of B, and its loss, the mean over all, is half of ours, the sum of two means.
    """
    if not photos.class_pictures:
        return
    accumulated = settings.get("gradient_accumulation_steps", 1)
    if photos.batch_size % 2 == 0:
        settings["train_batch_size"] = photos.batch_size // 2
        halved = f"train_batch_size {photos.batch_size // 2} = {photos.batch_size} / 2"
    elif accumulated % 2 == 0:
        settings["gradient_accumulation_steps"] = accumulated // 2
        halved = f"gradient_accumulation_steps {accumulated // 2} = {accumulated} / 2"
    else:
        notes.problem(
            f"reg pictures with train_batch_size {photos.batch_size} and gradient_accumulation_steps {accumulated} "
            "(a step there has a photo or a class picture; here always both)"
        )
        return
    settings["prior_loss_weight"] = values["prior_loss_weight"]
    settings["max_grad_norm"] = 2 * settings["max_grad_norm"] if values["max_grad_norm"] else NO_CLIPPING
    settings["adam_epsilon"] = 2 * settings.get("adam_epsilon", 1e-8)
    notes.arithmetic.append(
        f"{halved}: half of kohya's pictures are of the class; its loss is half of the sum here, so max_grad_norm and "
        "adam_epsilon are twice its own"
    )
    notes.differs.append("reg pictures: kohya shuffles them among the photos, half of a batch on average; here exactly")
    if values["min_snr_gamma"]:
        notes.problem("min_snr_gamma with reg pictures (it weighs the photos' loss alone)")


# --- optimizer, rates, schedule ---------------------------------------------------------------------------------------


def _optimizer(values: Mapping[str, Any], settings: dict[str, Any], notes: Notes) -> None:
    named = str(values["optimizer_type"] or ("AdamW8bit" if values["use_8bit_adam"] else "AdamW"))
    arguments = _arguments("optimizer_args", values["optimizer_args"], notes)
    name = named.lower()
    if name in ("adamw", "adamw8bit", "pagedadamw8bit"):
        settings["use_8bit_adam"] = name != "adamw"
        _adam_arguments(arguments, settings, notes)
    elif name == "prodigy":
        settings["optimizer"] = "prodigy"
        settings["adam_weight_decay"] = 0.0
        _fixed_arguments(named, {"decouple": True, **arguments}, _PRODIGY, notes)
        _adam_arguments({key: each for key, each in arguments.items() if key not in _PRODIGY}, settings, notes)
    elif name == "adafactor":
        settings["optimizer"] = "adafactor"
        settings["adam_weight_decay"] = 0.0
        _fixed_arguments(named, {"warmup_init": False, **arguments}, _ADAFACTOR, notes)
        rest = {key: each for key, each in arguments.items() if key not in _ADAFACTOR}
        _adam_arguments(rest, settings, notes, known=("weight_decay",))
    else:
        notes.problem(f"optimizer_type {named} (the optimizers are AdamW, its 8-bit form, Prodigy and Adafactor)")


def _fixed_arguments(optimizer: str, arguments: Mapping[str, Any], ours: Mapping[str, Any], notes: Notes) -> None:
    other = [name for name, value in ours.items() if arguments.get(name) != value]
    if other:
        wanted = ", ".join(f"{name}={ours[name]}" for name in other)
        notes.problem(f"{optimizer} without {wanted} in optimizer_args (so it trains here)")


def _adam_arguments(
    arguments: Mapping[str, Any],
    settings: dict[str, Any],
    notes: Notes,
    known: tuple[str, ...] = ("weight_decay", "eps", "betas"),
) -> None:
    for name, value in arguments.items():
        if name not in known:
            notes.problem(f"optimizer_args {name}={shorten(value)} (there is no such setting)")
        elif name == "weight_decay":
            settings["adam_weight_decay"] = value
        elif name == "eps":
            settings["adam_epsilon"] = value
        elif isinstance(value, tuple | list) and len(value) == 2:
            settings["adam_beta1"], settings["adam_beta2"] = value
        else:
            notes.problem(f"optimizer_args betas must be two numbers, got {shorten(value)}")


def _arguments(name: str, raw: Any, notes: Notes) -> dict[str, Any]:
    """`key=value` words, the values as Python writes them."""
    arguments: dict[str, Any] = {}
    for word in [raw] if isinstance(raw, str) else raw or []:
        key, equals, text = str(word).partition("=")
        if not equals:
            notes.problem(f"{name} {shorten(word)} must be written name=value")
            continue
        try:
            arguments[key.strip()] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            arguments[key.strip()] = text
    return arguments


def _rates(script: str, values: Mapping[str, Any], settings: dict[str, Any], notes: Notes) -> None:
    """One rate for the UNet and one for the text encoder; kohya trains the text encoder unless it is told not to."""
    rate = values.get("unet_lr") if values.get("unet_lr") is not None else values["learning_rate"]
    text_rate = values.get("text_encoder_lr") if script == NETWORK else values["learning_rate_te"]
    if isinstance(text_rate, list):
        text_rate = text_rate[0] if text_rate else None
    text_rate = values["learning_rate"] if text_rate is None else text_rate
    settings["learning_rate"] = rate
    if not rate:
        notes.problem(f"unet_lr {rate} (the UNet always trains)")
    stop = values.get("stop_text_encoder_training")
    trains = not values.get("network_train_unet_only") and bool(text_rate) and (stop is None or stop > 0)
    settings["train_text_encoder"] = trains
    if not trains:
        return
    if text_rate != rate:
        settings["text_encoder_learning_rate"] = text_rate
        if settings.get("optimizer") == "prodigy":
            notes.problem("Prodigy with two learning rates (one is for both)")
    if stop is not None and stop < settings["max_train_steps"]:
        settings["stop_text_encoder_training"] = stop


def _schedule(values: Mapping[str, Any], settings: dict[str, Any], launch: Launch, notes: Notes) -> None:
    warmup = values["lr_warmup_steps"] or 0
    steps = settings["max_train_steps"]
    if 0 < warmup < 1:
        settings["lr_warmup_steps"] = int(warmup * steps)
        notes.arithmetic.append(f"lr_warmup_steps {int(warmup * steps)} = {warmup:g} of {steps} steps")
    elif warmup:
        settings["lr_warmup_steps"] = int(warmup) // launch.processes
        if int(warmup) % launch.processes:
            notes.problem(f"lr_warmup_steps {warmup:g} on {launch.processes} processes (they count it together)")
    if warmup and values["lr_scheduler"] == "constant":
        notes.problem(f"lr_warmup_steps {warmup:g} with lr_scheduler constant (kohya refuses it too)")


# --- adapter ----------------------------------------------------------------------------------------------------------


def _adapter(values: Mapping[str, Any], settings: dict[str, Any], notes: Notes) -> None:
    module = values["network_module"]
    if module != "networks.lora":
        notes.problem(f"network_module {shorten(module)} (of kohya's adapters there is networks.lora)")
    rank, alpha = values["network_dim"] or 4, values["network_alpha"]
    alpha = 1.0 if alpha is None else alpha or float(rank)  # kohya takes 0 for the rank
    settings["rank"], settings["lora_alpha"] = rank, alpha
    settings["target_modules"] = "attention+ff"
    notes.arithmetic.append(f"lora_alpha {alpha:g} at rank {rank}: updates are scaled by {alpha / rank:.3g}, as there")
    notes.differs.append("adapters begin from other random numbers: A uniform there, normal here")
    arguments = _arguments("network_args", values["network_args"], notes)
    convolutions = arguments.pop("conv_dim", None)
    convolutions_alpha = arguments.pop("conv_alpha", None)
    if convolutions:
        if convolutions == rank and (convolutions_alpha or 1.0) == alpha:
            settings["target_modules"] = "all"
        else:
            notes.problem(
                f"network_args conv_dim {shorten(convolutions)}, conv_alpha {convolutions_alpha or 1.0:g} "
                f"(all layers have one rank and alpha, {rank} and {alpha:g})"
            )
    for name, value in arguments.items():
        if value:
            notes.problem(f"network_args {name}={shorten(value)} (there is no such setting)")


# --- prompts ----------------------------------------------------------------------------------------------------------


def _sample_prompts(file: str | None, notes: Notes) -> list[str]:
    """The prompts of kohya's sample file, without the options that follow them."""
    if not file:
        return []
    path = Path(file).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.suffix == ".txt" else None
    except (OSError, UnicodeDecodeError):
        lines = None
    if lines is None:
        notes.minded.append(
            f"sample_prompts {file!r} is not a text file that is here: the prompts are the instance prompt's"
        )
        return []
    prompts = [line.partition(" --")[0].strip() for line in lines if not line.lstrip().startswith("#")]
    return [prompt for prompt in prompts if prompt]
