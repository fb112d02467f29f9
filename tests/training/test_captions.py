"""What a photo is called: read from where people write it, with the person's name in it, and shown as options say."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from training.captions import caption_files, caption_of, caption_shown, class_words, read_caption
from training.config import LoraConfig, SubjectConfig
from training.dataset import encode_dataset, load_dataset
from training.errors import UserError
from training.pictures import look_into
from training.preparation import prepare_photos


def subject_of(folder: Path, **fields: object) -> SubjectConfig:
    return SubjectConfig(
        photos=folder,
        **{
            "instance_prompt": "a photo of sks woman",
            "class_prompt": "a photo of a woman",
            "rare_token": "sks",
            "resolution": 64,
            **fields,
        },
    )


@pytest.fixture
def photo(photos: Path, tmp_path: Path) -> Path:
    """One of six, in a folder of its own that may be written to."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for file in photos.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder / "photo_1.png"


def write_metadata(folder: Path, *entries: object) -> Path:
    file = folder / "metadata.jsonl"
    file.write_text("\n".join(json.dumps(entry) for entry in entries) + "\n\n", encoding="utf-8")
    return file


# --- where they are written --------------------------------------------------------------------------------------


def test_a_line_of_metadata_is_the_caption(photo: Path) -> None:
    """As Hugging Face's image folders have it; the file itself is no stranger among the photos."""
    file = write_metadata(photo.parent, {"file_name": photo.name, "text": " sks woman\nat sea"}, {"file_name": "x.png"})
    assert read_caption(photo) == "sks woman at sea"
    assert caption_files(photo) == [file]
    assert read_caption(photo.with_name("photo_3.png")) is None
    assert look_into(photo.parent).passed_over == ()


def test_metadata_above_kohyas_folders_names_their_photos(photo: Path) -> None:
    """With the folder in the name; and a sidecar that says otherwise is refused."""
    folder = photo.parent / "10_sks woman"
    folder.mkdir()
    inside = photo.rename(folder / photo.name)
    write_metadata(photo.parent, {"file_name": f"10_sks woman/{photo.name}", "text": "sks woman"})
    assert read_caption(inside) == "sks woman"
    inside.with_suffix(".txt").write_text("a woman")
    with pytest.raises(UserError, match=r"two that differ: .*photo_1\.txt and .*metadata\.jsonl"):
        read_caption(inside)


@pytest.mark.parametrize(
    ("lines", "law"),
    [
        ("{", "line 1: must be a JSON object"),
        ("\n[1]", 'line 2: must have a "file_name"'),
        ('{"text": "a"}', 'must have a "file_name"'),
        ('{"file_name": "photo_1.png", "text": 3}', '"text" must be text, got int'),
        ('{"file_name": "photo_1.png", "text": "a"}\n{"file_name": "photo_1.png", "text": "b"}', "got two for photo_1"),
    ],
)
def test_metadata_that_says_nothing_certain_is_refused(lines: str, law: str, photo: Path) -> None:
    """By file and line."""
    (photo.parent / "metadata.jsonl").write_text(lines)
    with pytest.raises(UserError, match=r"metadata\.jsonl, line") as refusal:
        read_caption(photo)
    assert law in str(refusal.value)


# --- the person's name -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("brackets", ["{}", "[]"])
def test_placeholders_become_the_subjects_words(brackets: str, photo: Path) -> None:
    """Trigger and class, in either bracket, wherever they stand; other brackets stay."""
    left, right = brackets
    photo.with_suffix(".txt").write_text(f"{left}trigger{right} the {left}class{right}, {{smiling}} [4k]")
    subject = subject_of(photo.parent)
    assert caption_of(photo, subject) == "sks the woman, {smiling} [4k]"
    assert read_caption(photo) == f"{left}trigger{right} the {left}class{right}, {{smiling}} [4k]"
    with pytest.raises(UserError, match=r"subject\.rare_token"):
        caption_of(photo, subject.model_copy(update={"rare_token": None}))
    with pytest.raises(UserError, match="end in no words that they share"):
        caption_of(photo, subject.model_copy(update={"class_prompt": "a man"}))


@pytest.mark.parametrize(
    ("instance", "class_prompt", "words"),
    [
        ("a photo of sks woman", "a photo of a woman", "woman"),
        ("a photo of sks woman face", "a photo of woman face ", "woman face"),
        ("photo of <ada> person", "photo of a dog", ""),
        ("a photo of sks woman", None, "woman"),
        ("a photo of sks", None, ""),
    ],
)
def test_the_class_is_what_both_prompts_end_in(
    instance: str, class_prompt: str | None, words: str, tmp_path: Path
) -> None:
    """Or, without a class prompt, what follows the rare token."""
    assert class_words(subject_of(tmp_path, instance_prompt=instance, class_prompt=class_prompt)) == words


def test_a_training_reads_the_filled_in_caption(photo: Path, tiny_base: str, tmp_path: Path) -> None:
    """In the dataset the name is in its place, and another name is another dataset."""
    photo.with_suffix(".txt").write_text("[trigger] at sea")
    for token in ("sks", "ohwx"):
        prepare_photos(subject_of(photo.parent, rare_token=token), tmp_path / "dataset")
        encode_dataset(tmp_path / "dataset", tiny_base, device="cpu")
        prompts = load_dataset(tmp_path / "dataset").prompts
        assert Counter(prompts) == {f"{token} at sea": 1, "a photo of sks woman": 5}


# --- in a training -----------------------------------------------------------------------------------------------

CAPTION = "sks woman, at sea, smiling,  4k"


def shown(number: int = 2000, **options: object) -> list[str]:
    config = LoraConfig.model_validate(options)
    return [caption_shown(CAPTION, config, np.random.default_rng(seed)) for seed in range(number)]


def test_without_options_a_caption_is_shown_as_it_is() -> None:
    """To the letter."""
    assert set(shown(5)) == {CAPTION}
    assert set(shown(5, keep_tokens=2)) == {CAPTION}


def test_a_caption_is_dropped_as_often_as_asked() -> None:
    """To within 4 standard deviations of a fair coin; and never or always at the ends."""
    dropped = shown(caption_dropout_rate=0.3).count("")
    assert abs(dropped - 600) < 4 * (2000 * 0.3 * 0.7) ** 0.5
    assert set(shown(50, caption_dropout_rate=1.0)) == {""}


def test_shuffling_permutes_the_parts_and_keeps_the_first() -> None:
    """All orders come, equally often; the first `keep_tokens` parts stay where they are; nothing is lost."""
    orders = Counter(shown(2400, shuffle_caption=True, keep_tokens=1))
    assert len(orders) == 6
    assert all(order.startswith("sks woman, ") for order in orders)
    assert {tuple(sorted(order.split(", "))) for order in orders} == {("4k", "at sea", "sks woman", "smiling")}
    assert max(orders.values()) - min(orders.values()) < 8 * (400 * 5 / 6) ** 0.5
    assert len(Counter(shown(500, shuffle_caption=True))) == 24
    assert set(shown(20, shuffle_caption=True, keep_tokens=9)) == {"sks woman, at sea, smiling, 4k"}


def test_what_one_option_draws_is_the_same_with_the_other() -> None:
    """Who is dropped does not depend on shuffling."""
    dropped = [text == "" for text in shown(200, caption_dropout_rate=0.5)]
    assert dropped == [text == "" for text in shown(200, caption_dropout_rate=0.5, shuffle_caption=True)]
