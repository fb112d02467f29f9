"""A run of diffusers' DreamBooth scripts in our words.

Held against `examples/dreambooth` and `examples/advanced_diffusion_training` of diffusers at 58eb52c.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sweeps.imports.flags import ADVANCED, DIFFUSERS, DIFFUSERS_SCRIPTS, FULL, OUTPUT_DIRS, Flag, flags_of
from sweeps.imports.launch import Launch
from sweeps.imports.run import Notes, Run, count_pictures, has_pictures, keys_beside, number_of, say_of_seed, written
from sweeps.imports.write import lawful_name
from sweeps.wording import learning_rate_text

OFFSET_NOISE = 0.1
"""What the full script's switch adds."""
_COMPUTED = frozenset(
    {
        *("num_train_epochs", "max_train_steps", "repeats", "scale_lr", "learning_rate", "lr_warmup_steps", "seed"),
        *("mixed_precision", "train_batch_size", "offset_noise", "adam_weight_decay_text_encoder", "text_encoder_lr"),
        *("train_text_encoder_frac", "optimizer", "use_8bit_adam"),
    }
)
"""Settings that become a key of the method, but not as they are."""
_REQUIRED = ("pretrained_model_name_or_path", "instance_data_dir", "instance_prompt")


def diffusers_run(script: str, given: Mapping[str, Any], launch: Launch, notes: Notes) -> Run:
    """The run of a script with the settings that its command gave; problems are left in `notes`."""
    flags = flags_of(DIFFUSERS, script)
    method = DIFFUSERS_SCRIPTS[script]
    values = {name: given.get(name, flag.default) for name, flag in flags.items()}
    for name in given:
        notes.fate(flags[name], given[name])
    for name in _REQUIRED:
        if not values[name]:
            notes.problem(f"--{name} must be given")
    settings = _settings(flags, values, given, launch, notes)
    _length(values, settings, launch, notes)
    if script == ADVANCED:
        _text_encoder_of_its_own(values, given, settings, launch, notes)
    _known_differences(script, values, settings, notes)
    subject = _subject(values, notes)
    for name in ("class_data_dir", "class_prompt", "prior_loss_weight", "num_class_images"):
        if name in given and not values["with_prior_preservation"]:
            notes.unneeded[name] = "only counts with with_prior_preservation"
    said = {key.rpartition(".")[2] for name in given if (key := flags[name].key) and key.startswith("methods.")}
    images = given.get("num_validation_images")
    if images is not None and not values["validation_prompt"]:
        notes.unneeded["num_validation_images"] = "only counts with validation_prompt"
    return Run(
        trainer=f"{script}.py",
        method=method,
        name=lawful_name(given.get("output_dir"), OUTPUT_DIRS[script]),
        base_model=values["pretrained_model_name_or_path"] or "",
        subject=subject,
        settings=written(settings, said, method),
        notes=notes,
        top=keys_beside(flags, values),
        prompts=[values["validation_prompt"]] if values["validation_prompt"] else [],
        images_per_prompt=images if images and values["validation_prompt"] else None,
        score_every=("checkpointing_steps", values["checkpointing_steps"] or 0),
    )


def _settings(
    flags: Mapping[str, Flag], values: Mapping[str, Any], given: Mapping[str, Any], launch: Launch, notes: Notes
) -> dict[str, Any]:
    settings = {
        flag.key.rpartition(".")[2]: values[name]
        for name, flag in flags.items()
        if flag.key is not None and flag.key.startswith("methods.") and name not in _COMPUTED
    }
    settings["seed"] = say_of_seed(values["seed"], notes)
    settings["mixed_precision"] = values["mixed_precision"] or launch.mixed_precision or "no"
    settings["use_8bit_adam"] = values["use_8bit_adam"]
    settings["train_batch_size"] = (values["train_batch_size"] or 0) * launch.processes
    if launch.processes > 1:
        notes.arithmetic.append(
            f"train_batch_size {settings['train_batch_size']} = {values['train_batch_size']} x {launch.processes} "
            "processes; resources.workers_per_trial shares it out again"
        )
    settings["learning_rate"] = _learning_rate(values, launch, notes)
    ignores_warmup = values["lr_scheduler"] == "constant"
    settings["lr_warmup_steps"] = given.get("lr_warmup_steps", 0 if ignores_warmup else values["lr_warmup_steps"])
    if values.get("offset_noise"):
        settings["noise_offset"] = OFFSET_NOISE
    return settings


def _learning_rate(values: Mapping[str, Any], launch: Launch, notes: Notes) -> float:
    rate: float = values["learning_rate"]
    if not values["scale_lr"] or rate is None:
        return rate
    factors = (values["gradient_accumulation_steps"], values["train_batch_size"], launch.processes)
    if None in factors:
        return rate
    scaled = rate * math.prod(factors)
    notes.arithmetic.append(
        f"learning_rate {learning_rate_text(scaled)} = {learning_rate_text(rate)} x {factors[0]} accumulated x "
        f"batch of {factors[1]} x {factors[2]} processes (scale_lr)"
    )
    return scaled


def _length(values: Mapping[str, Any], settings: dict[str, Any], launch: Launch, notes: Notes) -> None:
    """`max_train_steps`, by arithmetic where the run counts epochs."""
    steps = values["max_train_steps"]
    if steps is not None:
        settings["max_train_steps"] = steps
        if "num_train_epochs" in values and values["num_train_epochs"] != 1:
            notes.unneeded["num_train_epochs"] = "max_train_steps goes first"
        return
    updates = _updates_per_epoch(values, launch, notes, "max_train_steps")
    epochs = values["num_train_epochs"]
    if updates is None or epochs is None:
        settings["max_train_steps"] = 1
        return
    settings["max_train_steps"] = epochs * updates
    notes.arithmetic.append(f"max_train_steps {epochs * updates} = {epochs} epochs x {updates} steps")


def _updates_per_epoch(values: Mapping[str, Any], launch: Launch, notes: Notes, purpose: str) -> int | None:
    folder = values["instance_data_dir"]
    batch, accumulated = values["train_batch_size"], values["gradient_accumulation_steps"]
    if not folder or not batch or not accumulated or batch < 1 or accumulated < 1:
        return None
    photos = number_of(f"{purpose} counts the photos of instance_data_dir", lambda: count_pictures(folder), notes)
    if photos is None:
        return None
    shown = photos * (values.get("repeats") or 1)
    said = f"{photos} photos" + (f" x {values['repeats']} repeats" if values.get("repeats", 1) != 1 else "")
    if values["with_prior_preservation"] and (values["num_class_images"] or 0) > shown:
        shown = values["num_class_images"]
        said = f"{shown} class pictures"
    batches = math.ceil(math.ceil(shown / batch) / launch.processes)
    updates: int = math.ceil(batches / accumulated)
    text = f"an epoch is {updates} steps: {said}, in batches of {batch}"
    text += f" on {launch.processes} processes" if launch.processes > 1 else ""
    text += f", {accumulated} accumulated" if accumulated > 1 else ""
    if text not in notes.arithmetic:
        notes.arithmetic.append(text)
    return updates


def _text_encoder_of_its_own(
    values: Mapping[str, Any], given: Mapping[str, Any], settings: dict[str, Any], launch: Launch, notes: Notes
) -> None:
    """The advanced script's optimizer, and the rate, decay and last step of its text encoder."""
    optimizer = str(values["optimizer"]).lower()
    if optimizer not in ("adamw", "prodigy"):
        notes.minded.append(f"optimizer {values['optimizer']!r}: the script knows no such one and takes AdamW")
        optimizer = "adamw"
    settings["optimizer"] = optimizer
    if optimizer == "prodigy" and values["use_8bit_adam"]:
        settings["use_8bit_adam"] = False
        notes.unneeded["use_8bit_adam"] = "only counts with AdamW"
    if optimizer == "prodigy":
        for name in ("prodigy_decouple", "prodigy_use_bias_correction", "prodigy_safeguard_warmup"):
            if not bool(values[name]):  # the script's parser takes every word for true, `False` too
                notes.problem(f"{name} must be true")
    if not values["train_text_encoder"]:
        for name in ("text_encoder_lr", "train_text_encoder_frac", "adam_weight_decay_text_encoder"):
            if name in given:
                notes.unneeded[name] = "only counts with train_text_encoder"
        return
    if optimizer == "prodigy":
        notes.unneeded["text_encoder_lr"] = "Prodigy has one rate for both"
    elif values["text_encoder_lr"]:
        settings["text_encoder_learning_rate"] = values["text_encoder_lr"]
    decay = values["adam_weight_decay_text_encoder"]
    if decay and decay != values["adam_weight_decay"]:
        notes.problem(f"adam_weight_decay_text_encoder {decay:g} (one adam_weight_decay is for both)")
    fraction = values["train_text_encoder_frac"]
    if fraction is not None and fraction < 1:
        _last_step_of_text_encoder(values, settings, launch, notes)


def _last_step_of_text_encoder(
    values: Mapping[str, Any], settings: dict[str, Any], launch: Launch, notes: Notes
) -> None:
    updates = _updates_per_epoch(values, launch, notes, "train_text_encoder_frac")
    if updates is None:
        return
    fraction, steps = values["train_text_encoder_frac"], settings["max_train_steps"]
    epochs = math.ceil(steps / updates)
    stop = int(fraction * epochs) * updates
    notes.arithmetic.append(
        f"stop_text_encoder_training {stop} = {int(fraction * epochs)} of {epochs} epochs "
        f"(train_text_encoder_frac {fraction:g}) x {updates} steps"
    )
    notes.differs.append(
        "train_text_encoder_frac: the script sets the text encoder's rate to 0 for one step, then its schedule sets it "
        "anew; here the text encoder stops"
    )
    if stop <= 0:
        settings["train_text_encoder"] = False
        settings.pop("text_encoder_learning_rate", None)
    elif stop < steps:
        settings["stop_text_encoder_training"] = stop


def _known_differences(script: str, values: Mapping[str, Any], settings: Mapping[str, Any], notes: Notes) -> None:
    if not values["center_crop"]:
        notes.differs.append("no center_crop: squares are cut at random there, once and at the centre here")
    if script == FULL:
        notes.differs.append("pictures are resized bilinearly there, by lanczos here")
    if script == FULL and values["snr_gamma"] and values["with_prior_preservation"]:
        notes.differs.append("snr_gamma: the script mixes the class picture's weight in; here the photo's own counts")
    if script != FULL and settings["mixed_precision"] == "bf16":
        notes.differs.append("mixed_precision bf16: adapters are bf16 there, float32 here")


def _subject(values: Mapping[str, Any], notes: Notes) -> dict[str, Any]:
    subject = {
        "photos": values["instance_data_dir"],
        "instance_prompt": values["instance_prompt"],
        "class_prompt": values["class_prompt"] or None,
        "resolution": values["resolution"],
        "crop": "center",
        "held_out_photos": 0,
    }
    if not values["with_prior_preservation"]:
        return subject
    for name in ("class_data_dir", "class_prompt"):
        if not values[name]:
            notes.problem(f"--{name} must be given with --with_prior_preservation")
    folder = values["class_data_dir"]
    if folder and has_pictures(folder):
        subject["class_images"] = folder
    elif folder:
        notes.minded.append(f"class_data_dir {folder!r} has no pictures here: the base model draws them anew")
    return subject
