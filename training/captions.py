"""What a photo is called: the text beside it, with the person's name put in, and what a training makes of it.

Layouts are those that people's folders have: a `.txt` or `.caption` of the photo's name, as kohya's trainers read
them, or a `metadata.jsonl` with a line `{"file_name": "a.jpg", "text": "..."}` for each photo, as Hugging Face's image
folders have it. Needs no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from training.config import SubjectConfig, TrainConfig
from training.errors import UserError
from training.names import name_text, shown
from training.pictures import CAPTION_SUFFIXES, KOHYA_FOLDER, METADATA_FILE

SEPARATOR = ","
"""Between the parts of a caption that are put into another order."""

_PLACEHOLDER = re.compile(r"\{(trigger|class)\}|\[(trigger|class)\]")


# --- reading


def read_caption(photo: Path) -> str | None:
    """The photo's caption as it is written, on one line; None without one or without words in it.

    Raises:
        UserError: it is no text, or there are two that say different things.
    """
    captions = {_on_one_line(text): file for file, text in _texts_of(photo).items()}
    if len(captions) > 1:
        raise UserError(f"a photo has one caption, got two that differ: {' and '.join(map(str, captions.values()))}")
    return next(iter(captions), "") or None


def caption_files(photo: Path) -> list[Path]:
    """The files that hold the photo's caption; more than one only where they say the same."""
    return list(_texts_of(photo))


def stray_captions(photos: Sequence[Path]) -> list[Path]:
    """Caption files in the photos' folders that belong to none of them."""
    captions = [file for folder in sorted({photo.parent for photo in photos}) for file in _sidecars_in(folder)]
    stems = {photo.with_suffix("") for photo in photos}
    return [file for file in captions if file.with_suffix("") not in stems]


def _texts_of(photo: Path) -> dict[Path, str]:
    texts = {file: _read_text(file) for file in _sidecars_in(photo.parent) if file.stem == photo.stem}
    for file, name in _metadata_files_of(photo):
        if (text := _metadata_of(file).get(name)) is not None:
            texts[file] = text
    return texts


def _sidecars_in(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in CAPTION_SUFFIXES and not file.name.startswith(".") and file.is_file()
    )


def _metadata_files_of(photo: Path) -> list[tuple[Path, str]]:
    """Where the photo could be listed, and under which name: in its folder, or above kohya's `10_sks woman`."""
    folders = [photo.parent, *([photo.parent.parent] if KOHYA_FOLDER.fullmatch(photo.parent.name) else [])]
    places = [(folder / METADATA_FILE, photo.relative_to(folder).as_posix()) for folder in folders]
    return [(file, name) for file, name in places if file.is_file()]


def _metadata_of(file: Path) -> Mapping[str, str]:
    return _parsed_metadata(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _parsed_metadata(file: Path, _changed: int) -> Mapping[str, str]:
    texts: dict[str, str] = {}
    for number, line in enumerate(_read_text(file).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            raise UserError(f"{shown(file)}, line {number}: must be a JSON object") from None
        name = entry.get("file_name") if isinstance(entry, dict) else None
        text = entry.get("text") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            raise UserError(f'{shown(file)}, line {number}: must have a "file_name"')
        if text is None:
            continue
        if not isinstance(text, str):
            raise UserError(f'{shown(file)}, line {number}: "text" must be text, got {type(text).__name__}')
        if texts.setdefault(name, text) != text:
            raise UserError(f"{shown(file)}, line {number}: a photo has one caption, got two for {name_text(name)}")
    return texts


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"a caption must be UTF-8 text: {shown(file)}") from error


def _on_one_line(text: str) -> str:
    return " ".join(text.split())


# --- the person's name


def caption_of(photo: Path, subject: SubjectConfig) -> str | None:
    """The photo's caption with the person's name in it; None where the instance prompt speaks for it.

    `{trigger}` and `[trigger]` stand for the rare token, `{class}` and `[class]` for the words of `class_words`.

    Raises:
        UserError: from `read_caption`, or a placeholder stands for something that the subject does not say.
    """
    caption = read_caption(photo)
    if caption is None:
        return None

    def word(match: re.Match[str]) -> str:
        if "trigger" in match.group():
            if subject.rare_token is None:
                raise UserError(f"subject.rare_token: must be given, for the caption of {shown(photo)} asks for it")
            return subject.rare_token
        words = class_words(subject)
        if not words:
            raise UserError(
                f"the caption of {shown(photo)} asks for the class, but instance_prompt {subject.instance_prompt!r} "
                "and class_prompt end in no words that they share"
            )
        return words

    return _PLACEHOLDER.sub(word, caption)


def class_words(subject: SubjectConfig) -> str:
    """What kind of subject it is: `woman` of "a photo of sks woman" and "a photo of a woman".

    The words that both prompts end in; without a class prompt those after the rare token.
    """
    instance = subject.instance_prompt.split()
    if subject.class_prompt is None:
        token = (subject.rare_token or "").split()
        starts = [at for at in range(len(instance)) if token and instance[at : at + len(token)] == token]
        return " ".join(instance[starts[0] + len(token) :]) if starts else ""
    others = subject.class_prompt.split()
    shared = 0
    while shared < min(len(instance), len(others)) and instance[-1 - shared] == others[-1 - shared]:
        shared += 1
    return " ".join(instance[len(instance) - shared :])


# --- in a training


def caption_shown(prompt: str, config: TrainConfig, random: np.random.Generator) -> str:
    """What a photo is called this time: its prompt, perhaps in another order, perhaps nothing.

    One number decides on dropping, then one permutation on the order, whatever the config asks for: what one option
    draws is the same with and without the other.

    Args:
        prompt: the photo's.
        config: `caption_dropout_rate`, `shuffle_caption` and `keep_tokens`, as kohya's trainers have them.
        random: of this photo at this time.
    """
    is_dropped = random.random() < config.caption_dropout_rate
    if config.shuffle_caption:
        parts = [part.strip() for part in prompt.split(SEPARATOR)]
        kept, others = parts[: config.keep_tokens], parts[config.keep_tokens :]
        prompt = f"{SEPARATOR} ".join([*kept, *(others[place] for place in random.permutation(len(others)))])
    return "" if is_dropped else prompt
