"""The tables of docs/training.md, written anew between their markers.

    python docs/training_table.py            writes them
    python docs/training_table.py --check    says whether they are as they should be

Names of other trainers come from `sweeps/imports/flags.py`, defaults from the configs, what may share a pack from
`training.config`; only what an option does and when it helps is written here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from sweeps.config import SweepConfig
from sweeps.imports.flags import DIFFUSERS, KOHYA, Flag
from training.config import (
    DIFFERENCES_FROM_DIFFUSERS,
    DIFFERENCES_IN_BEHAVIOUR,
    PACKS_AGREE_ON,
    DreamBoothConfig,
    LoraConfig,
    SubjectConfig,
    TrainConfig,
    is_packable,
)

PAGE = Path(__file__).with_name("training.md")
BESIDE = ("base_model", "revision", "variant", "clip_skip", "initial_weights")
"""Keys beside the sweep file's sections that are part of a training."""
NOTHING = "-"
"""Where another trainer has no such setting."""


@dataclass(frozen=True)
class Row:
    """The words of an option."""

    does: str
    helps: str
    none: str = ""
    """What a default of None means."""


WORDS: dict[str, Row] = {
    # --- beside the sections
    "base_model": Row(
        "The model that is fine-tuned: hub id, diffusers folder, or one `.safetensors` file",
        "A merge made for people starts nearer to photographs than Stable Diffusion 1.5 itself",
    ),
    "revision": Row("Branch, tag or commit of a hub id", "Where a run is to be repeated later", "main"),
    "variant": Row(
        "Which of a hub id's weights: `fp16` is half the download",
        "Slow lines; what trains is float32 all the same",
        "plain, else fp16",
    ),
    "clip_skip": Row(
        "Which layer of the text encoder prompts are read from, counted from the last", "[See below](#clip-skip)"
    ),
    "initial_weights": Row(
        "A LoRA file of diffusers, peft or kohya that LoRA trials go on from, under any rank and alpha of their own",
        "To train a LoRA further, or for another person of the same kind",
        "none",
    ),
    # --- subject
    "subject.photos": Row(
        "Folder of the person's pictures, captions beside them",
        "Ten to twenty, in varied light and places: what all photos share is learnt as part of the person",
    ),
    "subject.instance_prompt": Row(
        "What a photo without a caption is called", "[See below](#captions-and-placeholders)"
    ),
    "subject.class_prompt": Row(
        "The same without the rare token; prior preservation holds on to it",
        "Give it always: it also tells the rare token",
    ),
    "subject.class_images": Row(
        "Folder of one's own pictures of the class",
        "Where the base model's own pictures of the class are poor ([see below](#prior-preservation-three-ways))",
    ),
    "subject.rare_token": Row(
        "The words that name the person", "Where it is not certain which they are; then it is asked for", "guessed"
    ),
    "subject.resolution": Row(
        "Side of the square training pictures",
        "512 is what Stable Diffusion 1.5 was made for; less is faster and vaguer",
    ),
    "subject.crop": Row(
        "`face`: a square around the face; `center`: the middle",
        "`center` where photos are framed already, or where a run elsewhere is to be repeated",
    ),
    "subject.held_out_photos": Row(
        "Photos that no trial learns from, for pictures to be compared with",
        "More make the likeness surer, and leave less to learn from; 0 where every photo must train",
        "a quarter of ten or more",
    ),
    "subject.random_flip": Row(
        "Mirrored photos too, with probability one half", "Seldom for faces ([see below](#mirrored-photos))"
    ),
    # --- both methods
    "methods.*.learning_rate": Row(
        "Size of a step", "The first thing to search: too low learns nobody, too high copies photos and forgets prompts"
    ),
    "methods.*.max_train_steps": Row(
        "Steps of the whole training",
        "Scored at several steps on the way (`evaluation.at_steps`), a constant schedule makes one run answer for all",
    ),
    "methods.*.seed": Row(
        "Of everything that is drawn", "To see what is luck: another seed may move likeness more than another rank"
    ),
    "methods.*.train_batch_size": Row(
        "Photos a micro-step; with prior preservation as many of the class besides",
        "Larger is steadier and dearer; 1 is common for one person",
    ),
    "methods.*.gradient_accumulation_steps": Row(
        "Micro-steps whose gradients make one step", "A larger batch than memory holds"
    ),
    "methods.*.gradient_checkpointing": Row(
        "Activations are computed twice instead of kept", "Full DreamBooth on small GPUs (Chen et al. 2016)"
    ),
    "methods.*.mixed_precision": Row(
        "Precision of the forward pass; what trains is float32 in any case",
        "`bf16` on GPUs that have it, `fp16` on older ones: faster, half the memory of what is frozen",
    ),
    "methods.*.use_8bit_adam": Row(
        "AdamW's moments in 8 bits (Dettmers et al. 2022)", "Full DreamBooth on small GPUs; little for a LoRA"
    ),
    "methods.*.adam_beta1": Row("Memory of AdamW's first moment", "Hardly ever"),
    "methods.*.adam_beta2": Row("Memory of its second moment", "0.99 reacts sooner in short runs"),
    "methods.*.adam_weight_decay": Row(
        "Pulls weights to zero, decoupled (Loshchilov & Hutter 2019)", "Weak at these rates and lengths"
    ),
    "methods.*.adam_epsilon": Row("Floor of AdamW's denominator", "Hardly ever"),
    "methods.*.max_grad_norm": Row(
        "Gradients of all weights together are clipped to it", "Holds single bad batches down (Pascanu et al. 2013)"
    ),
    "methods.*.lr_scheduler": Row(
        "How the rate goes over the run",
        "Falling ones end calmer, but look at the end: then every length is a run of its own",
    ),
    "methods.*.lr_warmup_steps": Row("Steps over which the rate rises; `constant` ignores it", "High rates, Adafactor"),
    "methods.*.lr_num_cycles": Row("Restarts of `cosine_with_restarts`", "Hardly ever"),
    "methods.*.lr_power": Row("Exponent of `polynomial`", "Hardly ever"),
    "methods.*.train_text_encoder": Row(
        "The text encoder trains too",
        "Ties the rare token to the person sooner, and spoils prompts sooner (kohya_ss #2679)",
    ),
    "methods.*.text_encoder_learning_rate": Row(
        "Its own rate", "Lower than the UNet's, where prompts suffer", "`learning_rate`"
    ),
    "methods.*.stop_text_encoder_training": Row(
        "The last step in which it trains", "Likeness without cooked prompts (kohya_ss #1537, #2679)", "the end"
    ),
    "methods.*.with_prior_preservation": Row(
        "Holds the class to what the base model makes of it (Ruiz et al. 2022)",
        "Where other people must not turn into this one; twice the rows of a batch",
    ),
    "methods.*.prior_from": Row(
        "What it holds on to: pictures of the class, or the base model's own answers",
        "`base_model` needs no pictures ([see below](#prior-preservation-three-ways))",
    ),
    "methods.*.prior_loss_weight": Row(
        "Weight of the class in the loss", "Below 1 where the person is learnt too slowly"
    ),
    "methods.*.num_class_images": Row(
        "Pictures of the class; the base model draws what one's own folder lacks", "More variety, drawn once a sweep"
    ),
    "methods.*.snr_gamma": Row(
        "Min-SNR: steps with little noise count less (Hang et al. 2023)",
        "5 is theirs; evens out what noise levels ask for (asked for in diffusers #6000)",
        "off",
    ),
    "methods.*.noise_offset": Row(
        "Adds noise to whole latent channels (Guttenberg 2023)",
        "0.1, for very dark or bright pictures (diffusers #2753, #2826)",
    ),
    "methods.*.face_loss_weight": Row(
        "How much more the face's box counts in the loss; needs `subject.crop: face`",
        "Small faces, busy backgrounds (diffusers #5160)",
    ),
    "methods.*.caption_dropout_rate": Row(
        "A photo is shown without words so often",
        "Keeps the answer without words that guidance needs: 0.1 to 0.2 in Ho & Salimans 2022 (kohya_ss #1797)",
    ),
    "methods.*.shuffle_caption": Row(
        "A caption's parts between commas in another order each time", "Captions that are lists of tags"
    ),
    "methods.*.keep_tokens": Row("Parts at the beginning that stay", "1 keeps the rare token in front (kohya_ss #70)"),
    "methods.*.optimizer": Row(
        "`adamw`, `prodigy` or `adafactor`", "Prodigy takes the rate out of the search ([see below](#optimizers))"
    ),
    "methods.*.fused_adam": Row("AdamW in one kernel", "Speed of full DreamBooth; rounds otherwise than diffusers"),
    "methods.*.channels_last": Row("Convolutions with channels innermost", "Speed on GPUs with tensor cores"),
    "methods.*.compile": Row("`torch.compile` of the UNet", "Long trainings; minutes before the first step"),
    "methods.*.allow_tf32": Row(
        "float32 products rounded to 10 bits", "Speed on GPUs that have TF32, with `mixed_precision: no`"
    ),
    # --- LoRA alone
    "methods.lora.rank": Row(
        "Width of the adapters (Hu et al. 2021)", "The second thing to search: more holds more, photos too"
    ),
    "methods.lora.lora_alpha": Row(
        "The update is scaled by `lora_alpha / rank`", "To repeat kohya's runs, whose default is 1", "the rank"
    ),
    "methods.lora.lora_alpha_ratio": Row(
        "`lora_alpha` as a multiple of the rank", "A search over ranks with one scale", "1, by `lora_alpha`"
    ),
    "methods.lora.lora_dropout": Row("Drops part of what enters an adapter", "Few photos, high ranks"),
    "methods.lora.target_modules": Row(
        "Which layers have adapters ([see below](#adapters))", "More layers hold more at the same rank, in larger files"
    ),
    "methods.lora.target_blocks": Row(
        "Which blocks of the UNet have them: `down`, `mid`, `up`, two of these or `all`",
        "Smaller files: of what a rank adds to the UNet's attention `up` is 54 %, `down` 36 %. "
        "The text encoder keeps all of its own",
    ),
    "methods.lora.use_rslora": Row(
        "Scale by the root of the rank (Kalajdzievski 2023)", "High ranks, which the plain scale holds back"
    ),
    "methods.lora.use_dora": Row(
        "Direction and magnitude apart (Liu et al. 2024)",
        "Low ranks, by its paper; one report of nothing but noise (kohya_ss #3439)",
    ),
    "methods.lora.adapter": Row(
        "`loha`, `lokr`: Hadamard and Kronecker products (Yeh et al. 2023)", "Small files, other programs' recipes"
    ),
}
"""Key -> words; the method's own name is the key above it and has no row."""


# --- rows -------------------------------------------------------------------------------------------------------------


def keys() -> dict[str, dict[str, FieldInfo]]:
    """Every key of a training -> the field, by method where a method has one of its own."""
    found: dict[str, dict[str, FieldInfo]] = {name: {"": SweepConfig.model_fields[name]} for name in BESIDE}
    found |= {f"subject.{name}": {"": field} for name, field in SubjectConfig.model_fields.items()}
    for config in (LoraConfig, DreamBoothConfig):
        method = config.model_fields["method"].default
        for name, field in config.model_fields.items():
            if name != "method":
                section = "*" if name in TrainConfig.model_fields else method
                found.setdefault(f"methods.{section}.{name}", {})[method] = field
    return found


def training_table() -> str:
    """A row for every option."""
    options = keys()
    assert WORDS.keys() == options.keys(), f"without a row, or without a field: {WORDS.keys() ^ options.keys()}"
    lines = [
        "| option | what it does | when it helps | diffusers | kohya | default | packs |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, words in WORDS.items():
        cells = [
            f"`{key.replace('methods.*.', '').replace('methods.lora.', '')}`" + _whose(key),
            words.does,
            words.helps,
            _names(DIFFUSERS, key),
            _names(KOHYA, key),
            _default(options[key], words.none),
            _packs(key),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _whose(key: str) -> str:
    return " (lora)" if key.startswith("methods.lora.") else ""


def _names(table: Iterable[Flag], key: str) -> str:
    names = dict.fromkeys(flag.name for flag in table if flag.key == key)
    return ", ".join(f"`{name}`" for name in names) or NOTHING


def _default(fields: dict[str, FieldInfo], none: str) -> str:
    return " / ".join(dict.fromkeys(_one_default(field, none) for field in fields.values()))


def _one_default(field: FieldInfo, none: str) -> str:
    if field.is_required():
        return "must be given"
    value = field.default
    if value is None:
        return none or "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:.0e}".replace("e-0", "e-") if 0 < value < 1e-2 else f"{value:g}"
    return str(value)


def _packs(key: str) -> str:
    """May trials of one pack differ in it?"""
    name = key.rpartition(".")[2]
    if not key.startswith("methods."):
        return "the sweep's"
    if name in PACKS_AGREE_ON:
        return "alike"
    alone = [value for value in _values(LoraConfig.model_fields[name]) if not _packs_with(name, value)]
    return f"alone: {', '.join(f'`{_said(value)}`' for value in alone)}" if alone else "yes"


def _values(field: FieldInfo) -> Iterator[Any]:
    """What an option may be, as far as it has names; of numbers one that is not its default."""
    kinds = [field.annotation, *get_args(field.annotation)]
    for kind in kinds:
        if get_origin(kind) is Literal:
            yield from get_args(kind)
    if bool in kinds:
        yield from (False, True)
    elif int in kinds or float in kinds:
        yield 1 if field.default is None else field.default


def _packs_with(name: str, value: object) -> bool:
    """Beside a text encoder that trains and prior preservation, without which some options mean nothing."""
    beside = {"train_text_encoder": True, "with_prior_preservation": True}
    for rate in ({}, {"learning_rate": 1.0}):
        try:
            return is_packable(LoraConfig.model_validate(beside | rate | {name: value}))
        except ValidationError:
            continue
    raise AssertionError(f"{name}: {value} is refused")


def _said(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, str) else "given"


# --- what there is not ------------------------------------------------------------------------------------------------


def _exists(key: str) -> bool:
    section, _, name = key.rpartition(".")
    models: dict[str, list[type[BaseModel]]] = {
        "": [SweepConfig],
        "subject": [SubjectConfig],
        "methods.*": [LoraConfig, DreamBoothConfig],
        "methods.lora": [LoraConfig],
    }
    return section == "evaluation" or all(name in model.model_fields for model in models[section])


def _listed(differences: Mapping[str, str]) -> str:
    return "\n".join(f"- `{name}`: {text}" for name, text in differences.items())


def _reason(flag: Flag) -> str:
    return f"not yet: there is no key `{flag.text}`" if flag.fate == "key" else flag.text


def absent_tables() -> str:
    """Settings of the others without a key here, by what becomes of them and why."""
    fates = (
        ("refused", "Refused: it changes what is trained, and nothing here does so"),
        ("differs", "Differs: pictures come out a little otherwise"),
        ("absent", "Absent: what is trained is the same without it"),
    )
    lines = []
    for fate, title in fates:
        lines += [f"**{title}**", "", "| why | diffusers | kohya |", "|---|---|---|"]
        reasons: dict[str, dict[str, dict[str, None]]] = {}
        for trainer, table in (("diffusers", DIFFUSERS), ("kohya", KOHYA)):
            for flag in table:
                is_coming = flag.key is not None and not _exists(flag.key)
                if flag.fate == fate or (fate == "refused" and is_coming):
                    reasons.setdefault(_reason(flag), {}).setdefault(trainer, {})[f"`{flag.name}`"] = None
        for reason, by_trainer in reasons.items():
            both = (", ".join(by_trainer.get(trainer, {})) or NOTHING for trainer in ("diffusers", "kohya"))
            lines.append(f"| {reason} | {' | '.join(both)} |")
        lines.append("")
    return "\n".join(lines).rstrip()


# --- the page ---------------------------------------------------------------------------------------------------------

TABLES = {
    "options": training_table,
    "defaults": lambda: _listed(DIFFERENCES_FROM_DIFFUSERS),
    "behaviour": lambda: _listed(DIFFERENCES_IN_BEHAVIOUR),
    "absent": absent_tables,
}


def rewritten(page: str) -> str:
    """The page with its tables as they should be."""
    for name, make in TABLES.items():
        start, end = f"<!-- {name}: by docs/training_table.py -->", f"<!-- end of {name} -->"
        before, found, rest = page.partition(start)
        _, closed, after = rest.partition(end)
        assert found, f"the page has no {start}"
        assert closed, f"the page has no {end}"
        page = f"{before}{start}\n\n{make()}\n\n{end}{after}"
    return page


def main() -> None:
    """Write the page, or look at it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    wanted = rewritten(page)
    if not asked.check:
        PAGE.write_text(wanted, encoding="utf-8")
    elif page != wanted:
        raise SystemExit("docs/training.md is out of date: python docs/training_table.py")


if __name__ == "__main__":
    main()
