"""Kohya's photos, class pictures and captions: from folders that are named for it, or from a dataset config."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.clip_text import is_common_word
from evaluation.rare_token import guess_rare_token
from sweeps.imports.arguments import typed
from sweeps.imports.flags import DATASET, KOHYA, flags_of
from sweeps.imports.run import Notes, beside, count_pictures, number_of
from sweeps.wording import shorten, unknown_key
from training.errors import UserError
from training.pictures import CAPTION_SUFFIXES, KOHYA_FOLDER, find_pictures

_SHARED = ("shuffle_caption", "keep_tokens", "caption_dropout_rate")
_FROM_COMMAND = {"train_batch_size": "batch_size"}


@dataclass(frozen=True)
class Shown:
    """How many pictures an epoch shows."""

    total: int
    text: str


@dataclass(frozen=True)
class Folder:
    """One of kohya's subsets."""

    path: str
    repeats: int
    words: str
    of_class: bool
    extension: str


@dataclass
class Photos:
    """What a run trains on."""

    subject: dict[str, Any]
    settings: dict[str, Any]
    batch_size: int
    by_buckets: bool
    photos: Sequence[Folder] = ()
    class_pictures: Sequence[Folder] = ()
    counted: dict[str, int] = field(default_factory=dict)

    def num_shown(self, notes: Notes, purpose: str) -> Shown | None:
        """Photos by their repeats, and class pictures to go with them; None, and a problem, where some aren't here."""
        counts = [self._count(each, notes, purpose) for each in [*self.photos, *self.class_pictures]]
        if None in counts or not self.photos:
            return None
        parts = [f"{self.counted[each.path]} photos x {each.repeats}" for each in self.photos]
        photos = sum(self.counted[each.path] * each.repeats for each in self.photos)
        if not self.class_pictures:
            return Shown(photos, " + ".join(parts))
        of_class = self._class_pictures_shown(photos)
        return Shown(photos + of_class, " + ".join([*parts, f"{of_class} of the class"]))

    def num_class_images(self, notes: Notes) -> int | None:
        """Class pictures that are used: no more than it takes to go with the photos."""
        if self.num_shown(notes, "reg pictures go with") is None:
            return None
        photos = sum(self.counted[each.path] * each.repeats for each in self.photos)
        (folder,) = self.class_pictures
        return min(self.counted[folder.path], math.ceil(photos / folder.repeats))

    def _class_pictures_shown(self, photos: int) -> int:
        (folder,) = self.class_pictures
        all_of_them = self.counted[folder.path] * folder.repeats
        return photos if all_of_them < photos else math.ceil(photos / folder.repeats) * folder.repeats

    def _count(self, folder: Folder, notes: Notes, purpose: str) -> int | None:
        if folder.path not in self.counted:
            number = number_of(f"{purpose} the pictures of {folder.path}", lambda: count_pictures(folder.path), notes)
            if number is None:
                return None
            self.counted[folder.path] = number
        return self.counted[folder.path]


def photos_of(values: Mapping[str, Any], dataset: Mapping[str, Any] | None, notes: Notes) -> Photos:
    """What a run with these settings trains on; problems are left in `notes`.

    Args:
        values: the settings of the command and the config file, defaults included.
        dataset: what the dataset config holds; None where the folders' names say it.
        notes: takes what is to be said.
    """
    subsets = _subsets_of_config(values, dataset, notes) if dataset is not None else _subsets_of_folders(values, notes)
    shared = next((subset for subset in subsets if not subset.get("is_reg")), dict(values))
    photos = Photos(
        subject={"photos": "", "instance_prompt": ""},
        settings={name: shared[name] for name in _SHARED if shared.get(name)},
        batch_size=shared.get("batch_size") or values["train_batch_size"] or 1,
        by_buckets=bool(shared.get("enable_bucket")),
    )
    photos.settings["train_batch_size"] = photos.batch_size
    folders = [folder for subset in subsets if (folder := _folder(subset, notes))]
    photos.photos = [folder for folder in folders if not folder.of_class]
    photos.class_pictures = [folder for folder in folders if folder.of_class]
    _agree(subsets, notes)
    if not photos.photos:
        if not notes.problems:
            notes.problem("there is no folder of photos")
        return photos
    photos.subject = _subject(photos, shared, values, notes)
    if photos.class_pictures:
        _class_pictures(photos, notes)
    for folder in folders:
        _check_captions(folder, notes)
    return photos


def _agree(subsets: Sequence[Mapping[str, Any]], notes: Notes) -> None:
    """Is what is said of one folder said of all?"""
    of_photos = [subset for subset in subsets if not subset.get("is_reg")]
    for names, among in ((_SHARED, of_photos), (("flip_aug", "resolution"), subsets)):
        for name in names:
            if len({str(subset.get(name)) for subset in among}) > 1:
                notes.problem(f"folders with different {name} (one is for all)")


def _subject(photos: Photos, shared: Mapping[str, Any], values: Mapping[str, Any], notes: Notes) -> dict[str, Any]:
    first = photos.photos[0]
    if len({folder.words for folder in photos.photos}) > 1:
        words = " and ".join(repr(folder.words) for folder in photos.photos[:2])
        notes.problem(f"photos of several names ({words}): a sweep is of one person")
    photos_dir = first.path if len(photos.photos) == 1 else values["train_data_dir"]
    if photos_dir is None:
        notes.problem("several image_dir of photos (photos are in one folder, or in one's 10_sks woman and the like)")
    subject: dict[str, Any] = {"photos": photos_dir or "", "instance_prompt": first.words}
    if not first.words.strip():
        notes.problem(f"{first.path}: class_tokens must be given: nothing names the person")
    subject["class_prompt"] = photos.class_pictures[0].words if photos.class_pictures else None
    token = _first_word(first.words) if subject["class_prompt"] is None else None
    if token is not None:
        subject["rare_token"] = token
        notes.minded.append(f"rare_token {token!r}: the first word of {first.words!r}, as kohya's folders are named")
    subject["resolution"] = _side(shared.get("resolution"), notes)
    subject["crop"] = "center"
    subject["held_out_photos"] = 0
    if shared.get("flip_aug"):
        subject["random_flip"] = True
    return subject


def _first_word(words: str) -> str | None:
    """What kohya's `ohwx woman` calls the person, where nothing else tells it; None for `photo of ada`."""
    try:
        guess_rare_token(words, None)
    except UserError:
        first, _, rest = words.strip().partition(" ")
        return first if rest and not is_common_word(first) else None
    return None


def _class_pictures(photos: Photos, notes: Notes) -> None:
    if len(photos.class_pictures) > 1:
        notes.problem("several folders of reg pictures (class pictures are in one)")
        return
    number = photos.num_class_images(notes)
    photos.settings["with_prior_preservation"] = True
    photos.subject["class_images"] = photos.class_pictures[0].path
    if photos.settings.get("caption_dropout_rate"):
        notes.problem("caption_dropout_rate with reg pictures (only photos lose their words)")
    if number is not None:
        photos.settings["num_class_images"] = number
        notes.arithmetic.append(f"num_class_images {number}: as many as go with the photos and their repeats")


def _side(resolution: Any, notes: Notes) -> int | None:
    parts = resolution if isinstance(resolution, list) else str(resolution or "").split(",")
    try:
        side, *others = {int(part) for part in parts}
    except (ValueError, TypeError):
        notes.problem(f"resolution must be given as pixels, got {shorten(resolution)}")
        return None
    if others:
        notes.problem(f"resolution {shorten(resolution)} (photos are cut to squares)")
    return side


# --- folders named for it ---------------------------------------------------------------------------------------------


def _subsets_of_folders(values: Mapping[str, Any], notes: Notes) -> list[dict[str, Any]]:
    folder = values["train_data_dir"]
    if not folder:
        notes.problem("train_data_dir or dataset_config must be given")
        return []
    subsets = []
    for setting, of_class in (("train_data_dir", False), ("reg_data_dir", True)):
        if not values[setting]:
            continue
        path = Path(values[setting]).expanduser()
        if not path.is_dir():
            notes.problem(
                f"{setting} {values[setting]}: not here, and the names of its folders (10_sks woman) say whom the "
                "pictures show and how often"
            )
            continue
        found = [sub for sub in sorted(path.iterdir()) if sub.is_dir() and KOHYA_FOLDER.fullmatch(sub.name)]
        if not found:
            notes.problem(f"{setting} {values[setting]}: needs folders named like 10_sks woman")
        for sub in found:
            repeats, _, words = sub.name.partition("_")
            image_dir = f"{values[setting].rstrip('/')}/{sub.name}"
            own = {"image_dir": image_dir, "num_repeats": int(repeats), "class_tokens": words, "is_reg": of_class}
            subsets.append({**values, **own})
    return subsets


# --- dataset config ---------------------------------------------------------------------------------------------------


def _subsets_of_config(values: Mapping[str, Any], dataset: Mapping[str, Any], notes: Notes) -> list[dict[str, Any]]:
    """Each subset with what it does not say from its dataset, the general section and the command, in this order."""
    for key in dataset:
        if key not in ("general", "datasets"):
            notes.problem(unknown_key(str(key), ["general", "datasets"]))
    for setting in ("train_data_dir", "reg_data_dir"):
        if values[setting]:
            notes.unneeded[setting] = "dataset_config goes first"
    command = {_FROM_COMMAND.get(name, name): value for name, value in values.items() if value is not None}
    general = _section(dataset.get("general", {}), "general", notes)
    datasets = dataset.get("datasets", [])
    if not isinstance(datasets, list) or len(datasets) != 1:
        number = len(datasets) if isinstance(datasets, list) else 0
        notes.problem(f"[[datasets]] must be one, got {number} (photos have one size and one batch)")
        return []
    first = datasets[0] if isinstance(datasets[0], dict) else {}
    subsets = first.get("subsets", [])
    own = _section({name: value for name, value in first.items() if name != "subsets"}, "datasets", notes)
    merged = [
        {**command, **general, **own, **_section(subset, "datasets.subsets", notes)}
        for subset in (subsets if isinstance(subsets, list) else [])
    ]
    return [subset for subset in merged if subset.get("num_repeats", 1) >= 1]


def _section(raw: Any, place: str, notes: Notes) -> dict[str, Any]:
    flags = flags_of(KOHYA, DATASET)
    if not isinstance(raw, dict):
        notes.problem(f"{place} must be a table, got {shorten(raw)}")
        return {}
    section = {}
    for name, value in raw.items():
        if name not in flags:
            notes.problem(f"{place}.{name}: {unknown_key(str(name), list(flags))}")
            continue
        notes.fate(flags[name], value)
        section[name] = typed(flags[name], value, notes)
    return section


def _folder(subset: Mapping[str, Any], notes: Notes) -> Folder | None:
    if not subset.get("image_dir"):
        notes.problem("image_dir must be given for each of datasets.subsets")
        return None
    return Folder(
        path=str(subset["image_dir"]),
        repeats=int(subset.get("num_repeats") or 1),
        words=str(subset.get("class_tokens") or ""),
        of_class=bool(subset.get("is_reg")),
        extension=str(subset.get("caption_extension") or ".caption"),
    )


# --- captions ---------------------------------------------------------------------------------------------------------


def _check_captions(folder: Folder, notes: Notes) -> None:
    """Would the same words be read here? Of a folder that is not here nothing can be said."""
    try:
        pictures = find_pictures(Path(folder.path).expanduser())
    except (UserError, OSError):
        return
    for suffix in sorted({*CAPTION_SUFFIXES, folder.extension}):
        files = [file for picture in pictures if (file := beside(picture, suffix)).is_file()]
        if not files:
            continue
        if suffix == folder.extension and folder.of_class:
            notes.problem(f"captions of class pictures ({files[0]}): class_prompt is read instead")
        elif suffix == folder.extension and suffix not in CAPTION_SUFFIXES:
            notes.problem(f"captions in {suffix} files (.txt and .caption are read)")
        elif suffix != folder.extension and suffix in CAPTION_SUFFIXES and not folder.of_class:
            notes.problem(
                f"{folder.path}: {suffix} files lie beside the photos, which kohya did not read "
                f"(caption_extension {folder.extension}): take them away"
            )
        elif any(len(file.read_text(encoding="utf-8", errors="replace").strip().splitlines()) > 1 for file in files):
            notes.problem(f"{folder.path}: captions of several lines, of which kohya reads the first alone")
