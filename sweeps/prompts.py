"""What the sweep file's texts ask for: that prompts name the person, and that nothing of a text is cut off unread.

Looked at when a sweep is checked or run, not when a file is read: older runs must stay readable, whatever they asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from evaluation.clip_text import num_clip_tokens, reader_of_clip
from evaluation.rare_token import has_rare_token, without_rare_token
from sweeps.config import SweepConfig, named_subject, rare_token
from sweeps.confirm import confirm_of, held_back_prompts
from training.captions import caption_files, caption_of, stray_captions
from training.config import SubjectConfig
from training.errors import UserError
from training.pictures import find_photos
from training.reading import TextReader
from training.tokenizer import reader_of_base_model

SPLIT = "in a list in [brackets] a comma ends a prompt, and ' #' begins a comment: put prompts in quotes"
MOST_NAMED = 3
"""Files that a warning names; of more it says how many."""
STABLE_DIFFUSION_15 = TextReader("Stable Diffusion 1.5's text encoder", 77, lambda text: num_clip_tokens(text) <= 77)
"""Stands for a base model whose tokenizer is not here."""


@dataclass(frozen=True)
class Text:
    """A text of the sweep file and where it stands."""

    place: str
    text: str


@dataclass(frozen=True)
class Texts:
    """What is read in a sweep, and by whom."""

    by_pipeline: tuple[Text, ...]
    by_clip: tuple[Text, ...]
    captions: tuple[Text, ...]
    """Of the pipeline too, but a long one is only warned of: people's captions are long."""

    @classmethod
    def of(cls, config: SweepConfig) -> Texts:
        """Every text of the sweep.

        Raises:
            UserError: the rare token is not certain, a prompt is nothing but the token, or a caption cannot be read.
        """
        return cls(
            by_pipeline=tuple(text for text in _pipeline_texts(config) if text.text),
            by_clip=tuple(_clip_texts(config)),
            captions=tuple(Text(f"caption of {photo}", caption) for photo, caption in _captions(config.subject)),
        )


def check_prompts(config: SweepConfig) -> tuple[str, ...]:
    """Refuse texts by which something else would be trained or measured than is meant; no model is loaded.

    Returns:
        What is to be minded, a line each.

    Raises:
        UserError: a prompt that does not name the person, is there twice, leaves CLIP nothing to read or is longer than
            what its readers read; a class prompt that names the person; a rare token that is not certain.
    """
    token = rare_token(config.subject)
    _check_subject(config.subject, token)
    warnings = [*_check_evaluation_prompts(config, token)]
    if (
        config.render is not None
        and config.render.prompt is not None
        and not has_rare_token(config.render.prompt, token)
    ):
        raise UserError(
            f"render.prompt: must name the person with the rare token {token!r}, got {config.render.prompt!r}"
        )
    texts = Texts.of(config)
    reader = reader_of_base_model(config.base)
    if reader is not None:
        refuse_cut(texts.by_pipeline, reader)
    else:
        warnings += cut_texts(texts.by_pipeline, STABLE_DIFFUSION_15)
    clip = reader_of_clip(config.evaluation.clip)
    if clip is not None:
        refuse_cut(texts.by_clip, clip)
    return (
        *warnings,
        *_caption_warnings(config.subject, token),
        *cut_texts(texts.captions, reader or STABLE_DIFFUSION_15),
    )


def prompt_lines(config: SweepConfig) -> list[str]:
    """For people: the rare token, and what CLIP reads of each prompt."""
    token = rare_token(config.subject)
    guessed = "" if config.subject.rare_token else ", as it seems; subject.rare_token names another"
    read = [_clip_text(place, prompt, token) for place, prompt in _prompts(config)]
    return [f"token     {token}{guessed}", *(f"CLIP      reads: {text}" for text in read)]


def refuse_cut(texts: Iterable[Text], reader: TextReader) -> None:
    """Refuse a text that the reader would not read to its end.

    Raises:
        UserError: place, limit and the words that would be lost.
    """
    for line in cut_texts(texts, reader):
        raise UserError(line)


def cut_texts(texts: Iterable[Text], reader: TextReader) -> list[str]:
    """A line for each text that the reader would not read to its end."""
    return [f"{text.place}: {refusal}" for text in texts if (refusal := reader.refusal(text.text))]


def comments_in_texts(sweep_file: Path) -> list[str]:
    """A line for each text of several words that ends for YAML at a comment, as `person #1 in a forest` does.

    A comment that begins with a space is one.
    """
    source = sweep_file.read_text(encoding="utf-8")
    scalars = [token for token in yaml.scan(source) if isinstance(token, yaml.ScalarToken)]
    ends = [scalar.end_mark for scalar in scalars if scalar.plain and " " in scalar.value]
    comments = ((mark, re.match(r"[ \t]+#(?=[^\s#])[^\n]*", source[mark.index :])) for mark in ends)
    return [
        f"{sweep_file.name}, line {mark.line + 1}: {comment.group().strip()!r} is a comment to YAML; if it belongs to "
        "the text, put the whole text in quotes"
        for mark, comment in comments
        if comment
    ]


# --- the person -------------------------------------------------------------------------------------------------------


def _check_subject(subject: SubjectConfig, token: str) -> None:
    instance, class_prompt = subject.instance_prompt, subject.class_prompt
    if not has_rare_token(instance, token):
        raise UserError(f"subject.rare_token: must stand in instance_prompt {instance!r}, got {token!r}")
    if class_prompt is None:
        return
    if not class_prompt.strip():
        raise UserError(
            f"subject.class_prompt: must be words, got {class_prompt!r}; leave the key out where there is none"
        )
    if has_rare_token(class_prompt, token):
        raise UserError(
            f"subject.class_prompt: must be the instance prompt without the rare token {token!r} (it would be "
            f"taught to the whole class), got {class_prompt!r}"
        )


def _check_evaluation_prompts(config: SweepConfig, token: str) -> Iterator[str]:
    seen: dict[str, str] = {}
    for place, prompt in _prompts(config):
        if not re.search(r"\w", prompt):
            raise UserError(f"{place}: must be words, got {prompt!r} ({SPLIT})")
        first = seen.setdefault(" ".join(prompt.split()).casefold(), place)
        if first != place:
            raise UserError(f"{place}: must be another than {first}, got {prompt!r} twice ({SPLIT})")
        _clip_text(place, prompt, token)
        if has_rare_token(prompt, token):
            continue
        if config.evaluation.prompts_without_token != "allow":  # noqa: S105 -- no password
            raise UserError(_unnamed(place, prompt, config, token))
        yield f"{place} does not name the person; its pictures count in the face similarity all the same"


def _unnamed(place: str, prompt: str, config: SweepConfig, token: str) -> str:
    """The refusal of a prompt about nobody, the likeliest cause first."""
    others_do = any(has_rare_token(prompt, token) for prompt in config.evaluation.prompts)
    cause = SPLIT if others_do else "is the token another one? say so in subject.rare_token"
    law = f"{place}: must name the person with the rare token {token!r}, got {prompt!r}; {cause}."
    return f"{law} For prompts about the class: evaluation.prompts_without_token: allow"


def _clip_text(place: str, prompt: str, token: str) -> str:
    try:
        return without_rare_token(prompt, token)
    except UserError as error:
        raise UserError(f"{place}: needs words for CLIP to read: {error}") from None


def _prompts(config: SweepConfig) -> list[tuple[str, str]]:
    """Place and text of every prompt that pictures are made for, those held back from the search at the end."""
    prompts = [(f"evaluation.prompts[{number}]", prompt) for number, prompt in enumerate(config.evaluation.prompts)]
    confirm = confirm_of(config)
    if confirm is None:
        return prompts
    where = "confirm.prompts[{}]" if confirm.prompts else "confirm.prompts (default) [{}]"
    return [*prompts, *((where.format(n), prompt) for n, prompt in enumerate(held_back_prompts(config, confirm)))]


# --- texts and captions -----------------------------------------------------------------------------------------------


def _pipeline_texts(config: SweepConfig) -> Iterator[Text]:
    yield Text("subject.instance_prompt", config.subject.instance_prompt)
    yield Text("subject.class_prompt", config.subject.class_prompt or "")
    for place, prompt in _prompts(config):
        yield Text(place, prompt)
    yield Text("evaluation.negative_prompt", config.evaluation.negative_prompt)
    if config.render is not None:
        yield Text("render.prompt", config.render.prompt or "")
        yield Text("render.negative_prompt", config.render.negative_prompt)


def _clip_texts(config: SweepConfig) -> Iterator[Text]:
    token = rare_token(config.subject)
    for place, prompt in _prompts(config):
        yield Text(place, _clip_text(place, prompt, token))


def _captions(subject: SubjectConfig) -> list[tuple[Path, str]]:
    photos, named = find_photos(subject.photos), named_subject(subject)
    return [(photo.relative_to(subject.photos), caption) for photo in photos if (caption := caption_of(photo, named))]


def _caption_warnings(subject: SubjectConfig, token: str) -> Iterator[str]:
    photos = find_photos(subject.photos)
    captions = {photo: caption_of(photo, subject.model_copy(update={"rare_token": token})) for photo in photos}
    unnamed = [photo for photo, caption in captions.items() if caption and not has_rare_token(caption, token)]
    empty = [file for photo, caption in captions.items() if not caption for file in caption_files(photo)]
    stray = stray_captions(photos)
    for what, files in (
        (f"without the rare token {token!r}, which teach nothing about it, are those of", unnamed),
        ("without words, for which the instance prompt stands, are", empty),
        ("of no photo, which are not read, are", stray),
    ):
        if files:
            yield f"captions {what} {_named([file.relative_to(subject.photos) for file in files])}"


def _named(files: Sequence[Path]) -> str:
    names = ", ".join(map(str, files[:MOST_NAMED]))
    return names if len(files) <= MOST_NAMED else f"{names} and {len(files) - MOST_NAMED} more"
