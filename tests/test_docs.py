"""What the docs say of the code is what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.training_table import PAGE, WORDS, keys, rewritten, training_table
from training.config import DreamBoothConfig, LoraConfig, SubjectConfig

ROOT = Path(__file__).parents[1]


def test_the_tables_of_the_training_page_are_what_the_script_makes() -> None:
    """After a change of a field, a default or a flag: `python docs/training_table.py`."""
    page = PAGE.read_text(encoding="utf-8")
    assert page == rewritten(page)


def test_every_field_of_a_training_has_a_row_and_every_row_a_field() -> None:
    """Of the subject's, of both methods', and of the keys beside them; the method's name alone is a section's."""
    assert WORDS.keys() == keys().keys()
    fields = {*SubjectConfig.model_fields, *LoraConfig.model_fields, *DreamBoothConfig.model_fields} - {"method"}
    beside = {"base_model", "revision", "variant", "clip_skip", "initial_weights"}
    assert {key.rpartition(".")[2] for key in WORDS} == fields | beside
    rows = training_table().splitlines()
    assert len(rows) == 2 + len(WORDS)
    assert {row.count("|") for row in rows} == {8}


def test_the_table_says_defaults_names_and_packs_as_they_are() -> None:
    """Read by eye, of a few rows: a generator that went wrong would agree with itself."""
    cells = {
        row.split("`")[1]: [cell.strip() for cell in row.split("|")[4:8]] for row in training_table().splitlines()[2:]
    }
    assert cells["learning_rate"] == ["`scale_lr`, `learning_rate`", "`learning_rate`, `unet_lr`", "5e-4 / 5e-6", "yes"]
    assert cells["optimizer"] == ["`optimizer`", "`optimizer_type`", "adamw", "alone: `prodigy`, `adafactor`"]
    assert cells["train_batch_size"][2:] == ["4", "alike"]
    assert cells["lora_alpha"] == ["-", "`network_alpha`", "the rank", "yes"]
    assert cells["subject.photos"][2:] == ["must be given", "the sweep's"]


def anchors(page: Path) -> set[str]:
    """What may stand behind `#` of a page, by its headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ["docs/training.md", "README.md", "docs/tutorial.md"])
def test_links_lead_somewhere(page: str) -> None:
    """To files of the repository, and to headings in them."""
    file = ROOT / page
    for target in re.findall(r"\]\(([^)\s]+)\)", file.read_text(encoding="utf-8")):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            other = (file.parent / path) if path else file
            assert other.exists(), target
            assert not anchor or anchor in anchors(other), target
