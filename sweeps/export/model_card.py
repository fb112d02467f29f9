"""The README.md of an exported model: what it is, how good it is, how it is loaded, what may be done with it.

Nothing of this machine is in it: a local base model is named by its folder alone.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open

from sweeps.config import SweepConfig, trigger_words
from sweeps.results.advice import advice_of
from sweeps.results.intervals import Difference, Interval
from sweeps.results.leaderboard import Row
from sweeps.results.results import Results
from sweeps.wording import learning_rate_text, public_name
from training.config import Adapter, LoraConfig, MethodConfig

_IMPORTS = """import torch
from diffusers import StableDiffusionPipeline
"""
_ON_BASE = (
    _IMPORTS
    + """pipeline = StableDiffusionPipeline.{load_base}({base}, dtype=torch.float32)
pipeline.load_lora_weights("<this folder>", weight_name="{file}")"""
)
HOW_TO_LOAD = {
    "diffusers": _IMPORTS
    + """pipeline = StableDiffusionPipeline.from_pretrained("<this folder>", dtype=torch.float32)""",
    "lora": _ON_BASE,
    "kohya": "# A1111 and Forge: copy {file} to models/Lora; ComfyUI: models/loras. In diffusers:\n" + _ON_BASE,
    "checkpoint": "# A1111, Forge: copy {file} to models/Stable-diffusion; ComfyUI: models/checkpoints. In diffusers:\n"
    + _IMPORTS
    + """pipeline = StableDiffusionPipeline.from_single_file("<this folder>/{file}", dtype=torch.float32)""",
}
"""Without a `dtype` transformers takes a text encoder in the precision in which it is stored, diffusers a UNet in
float32, and of a base model that is stored in half precision the two do not go together."""
_FOR_OTHER_PROGRAMS = "A1111, Forge and ComfyUI read {file} (models/Lora, models/loras); diffusers does not."


def model_card(results: Results, config: SweepConfig, row: Row, format: str, file: str | None) -> str:  # noqa: A002
    """The card as Markdown with the hub's YAML header.

    Args:
        results: the run that the checkpoint comes from.
        config: the run's settings.
        row: the exported checkpoint.
        format: one of `HOW_TO_LOAD`.
        file: name of the weights file, if there is a single one.
    """
    trial = TypeAdapter(MethodConfig).validate_python(_trial_config(results, row))
    adapter = trial.adapter if isinstance(trial, LoraConfig) else None
    licence = base_model_licence(config.base_model)
    base = public_name(config.base_model)
    parts = [
        _header(config, row, licence),
        f"# {config.name}",
        _what_it_is(config, row, ADAPTER_NAMES[adapter] if adapter else None),
        f"## Words that call it\n\n{code(trigger_words(config.subject))}, "
        f"as in {code(config.subject.instance_prompt)}.",
        f"## Loading it\n\n{_loading(config, adapter, format, file)}",
        f"## Scores\n\n{_scores(results, config, row)}",
        f"## Settings\n\n```yaml\n{yaml.safe_dump(_trial_config(results, row), sort_keys=False)}```",
        f"## Licence\n\n{_licence_text(base, licence)}",
        "Made by dreamsweep from photos of one person: do not use it to deceive about that person, "
        "nor against their will.",
    ]
    return "\n\n".join(parts) + "\n"


def _loading(config: SweepConfig, adapter: Adapter | None, format: str, file: str | None) -> str:  # noqa: A002
    """How the file is loaded, as a program that runs as it stands once the folder's name is in it."""
    if format == "kohya" and adapter not in (None, "lora"):
        return _FOR_OTHER_PROGRAMS.format(file=file)
    base = public_name(config.base_model)
    load_base = "from_single_file" if base.endswith(".safetensors") else "from_pretrained"
    program = HOW_TO_LOAD[format].format(base=quoted(base), load_base=load_base, file=file)
    if config.clip_skip > 1 and format != "diffusers":
        program += _SKIP.format(layers=config.clip_skip - 1, clip_skip=config.clip_skip)
    is_merged = adapter is not None and format in ("diffusers", "checkpoint")
    return (
        f"```python\n{program}\nimage = pipeline({quoted(config.subject.instance_prompt)}).images[0]\n```\n\n"
        "Weights are float32, as they were trained; `dtype=torch.float16` takes half the memory."
        + (" The adapter is merged into the base model's weights." if is_merged else "")
        + _clip_skip_text(config.clip_skip, format)
    )


_SKIP = """
encoder = pipeline.text_encoder.encoder  # with transformers 4: pipeline.text_encoder.text_model.encoder
encoder.layers = encoder.layers[:-{layers}]  # clip skip {clip_skip}"""
"""diffusers 0.42's own `clip_skip` fails with transformers 5, whose text encoder has no `text_model` any more."""


def _clip_skip_text(clip_skip: int, format: str) -> str:  # noqa: A002
    if clip_skip == 1:
        return ""
    if format == "diffusers":
        return f" It was trained with clip skip {clip_skip}, which is built in: its text encoder ends there."
    return f" It was trained with clip skip {clip_skip}: set it in A1111, Forge and ComfyUI."


def code(text: str) -> str:
    """The text as inline code of Markdown, whatever is in it: nothing of it is markup. Line ends become blanks."""
    line = " ".join(text.split())
    longest = max(map(len, re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    room = " " if line.startswith("`") or line.endswith("`") else ""  # CommonMark takes one blank away on each side
    return f"{fence}{room}{line}{room}{fence}"


def quoted(text: str) -> str:
    """The text as a string of Python and of JSON, on one line."""
    return json.dumps(text, ensure_ascii=False)  # JSON's pairs of surrogates would be two letters in Python


def base_model_licence(base_model: str) -> str | None:
    """The licence that the base model's own card or metadata names; None where neither is on this machine."""
    path = Path(base_model)
    if path.is_file():
        return _licence_of_file(path)
    if path.is_dir():
        return _licence_of_card(path / "README.md")
    try:
        cached = try_to_load_from_cache(base_model, "README.md")
    except HFValidationError:
        return None
    return _licence_of_card(Path(cached)) if isinstance(cached, str) else None


def _licence_of_file(path: Path) -> str | None:
    try:
        with safe_open(str(path), framework="np") as stored:
            return (stored.metadata() or {}).get("modelspec.license")
    except (OSError, SafetensorError):
        return None


def _licence_of_card(path: Path) -> str | None:
    """`license:` of the YAML header of a hub card; `license_name:` where that says `other`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    if not text.startswith("---\n"):
        return None
    try:
        header = yaml.safe_load(re.split("^---$", text, maxsplit=2, flags=re.MULTILINE)[1])
    except yaml.YAMLError:
        return None
    if not isinstance(header, dict):
        return None
    licence = header.get("license_name") if header.get("license") == "other" else header.get("license")
    return str(licence) if licence else None


def _licence_text(base: str, licence: str | None) -> str:
    if licence is None:
        return (
            f"This model carries the licence of its base model, {code(base)}. Its card was not at hand when this was "
            "exported: look the licence up before you share or use the weights."
        )
    return f"This model carries the licence of its base model, {code(base)}: {code(licence)}."


def _header(config: SweepConfig, row: Row, licence: str | None) -> str:
    tags = ["stable-diffusion", "text-to-image", "diffusers", "lora" if row.method == "lora" else "dreambooth"]
    header: dict[str, Any] = {
        **({"license": licence} if licence else {}),
        "base_model": public_name(config.base_model),
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "instance_prompt": config.subject.instance_prompt,
        "tags": tags,
    }
    return f"---\n{yaml.dump(header, Dumper=_OneLineDumper, sort_keys=False, allow_unicode=True, width=math.inf)}---"


class _OneLineDumper(yaml.SafeDumper):
    """A text on one line, so that no reader takes a line of a prompt for the header's end."""


def _one_line(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if len(text.splitlines()) > 1 else None)


_OneLineDumper.add_representer(str, _one_line)


ADAPTER_NAMES: Mapping[Adapter, str] = {"lora": "LoRA", "loha": "LoHa", "lokr": "LoKr"}


def _what_it_is(config: SweepConfig, row: Row, adapter: str | None) -> str:
    method = f"A {adapter} of rank {row.rank}" if adapter else "A full DreamBooth fine-tune"
    initial = config.initial_weights
    went_on = f", going on from {code(initial.name)}" if adapter and initial is not None else ""
    return (
        f"{method} of {code(public_name(config.base_model))}{went_on}, trained for {row.step} steps at learning rate "
        f"{learning_rate_text(row.learning_rate)} (seed {row.seed}). Trial {code(row.trial)} of the sweep "
        f"{code(config.name)}."
    )


def _scores(results: Results, config: SweepConfig, row: Row) -> str:
    champion, finalist = results.champion, results.finalist_of_training(row.trial)
    base = results.base if finalist is None else results.confirmations.base  # on the same pictures
    lines = ["| | face similarity | prompt alignment | pictures with a face |", "|---|---|---|---|"]
    lines += [_score_line("this model", row)] + ([_score_line("base model", base)] if base else [])
    face_encoder = row.face_encoder or public_name(config.evaluation.face.encoder)
    clip = row.clip or f"{public_name(config.evaluation.clip.model)} {config.evaluation.clip.pretrained}"
    lines += [
        "",
        f"In brackets 95 % intervals over {row.num_images} pictures, prompts as the unit. Face similarity: cosine of "
        f"{code(face_encoder)} embeddings to the mean of the reference photos, a picture without a "
        f"face counts {row.no_face_similarity:g}. Prompt alignment: raw cosine of {code(clip)}.",
        "",
    ]
    if row.likeness is not None:
        lines += [f"Likeness: {row.likeness:.0%} of the way from the base model to another real photo.", ""]
    is_champion = champion.row is not None and (champion.row.trial, champion.row.step) == (row.trial, row.step)
    if is_champion:
        advice = advice_of(results)
        lines.append(f"It is the sweep's champion. Rule: {champion.rule}. How sure it is: {advice.how_sure}.")
        if champion.confirmed is not None:
            again = champion.confirmed.face_similarity
            lines.append(
                f"Trained again with {len(champion.confirmed.trainings)} other seeds, on other noise and prompts, "
                f"these settings have a face similarity of {again.mean:.3f} {_brackets(again.interval)}, over "
                "training seeds, prompts and noise."
            )
        if champion.versus_base:
            lines.append(f"Face similarity over the base model: {_difference(champion.versus_base)}.")
        lines += [f"But: {caveat}." for caveat in champion.caveats]
    else:
        if finalist is not None:
            lines.append(
                f"It is one of {len(finalist.trainings)} trainings of trial {finalist.row.trial}'s settings with other "
                "seeds, scored on the pictures by which the champion is named."
            )
        named = "none" if champion.row is None else f"trial {champion.row.trial}, step {champion.row.step}"
        lines.append(f"It was exported by name. The sweep's champion is {named}. Rule: {champion.rule}.")
    return "\n".join(lines)


def _score_line(name: str, row: Row) -> str:
    face = f"{row.face_similarity:.3f} {_brackets(row.face_similarity_interval)}".strip()
    prompt = f"{row.prompt_alignment:.3f} {_brackets(row.prompt_alignment_interval)}".strip()
    return f"| {name} | {face} | {prompt} | {row.num_faces} of {row.num_images} |"


def _brackets(interval: Interval | None) -> str:
    return f"[{interval.low:.3f}, {interval.high:.3f}]" if interval else ""


def _difference(difference: Difference) -> str:
    if difference.mean is None:
        return "no picture in common"
    return f"{difference.mean:+.3f} {_brackets(difference.interval)}".strip()


def _trial_config(results: Results, row: Row) -> dict[str, Any]:
    return results.record_of(row).config
