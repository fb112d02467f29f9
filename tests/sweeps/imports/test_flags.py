"""Laws of the table of other trainers' settings: nothing of theirs is missing, nothing of ours is made up."""

from __future__ import annotations

import pytest

from evaluation.config import EvaluationConfig
from sweeps.config import SweepConfig
from sweeps.imports.flags import DIFFUSERS, KOHYA, LAUNCHER, Flag, flags_of
from tests.sweeps.imports.recorded import DIFFUSERS_FLAGS, KOHYA_FLAGS
from training.config import METHODS, SubjectConfig

ALL = [*DIFFUSERS, *KOHYA, *LAUNCHER]


@pytest.mark.parametrize("script", DIFFUSERS_FLAGS)
def test_every_flag_of_diffusers_has_a_row(script: str) -> None:
    """The rows of a script are its parser's flags: none is missing, none is ours."""
    assert flags_of(DIFFUSERS, script).keys() == set(DIFFUSERS_FLAGS[script].split())


@pytest.mark.parametrize("script", KOHYA_FLAGS)
def test_every_setting_of_kohya_has_a_row(script: str) -> None:
    """The rows of a script, and of the dataset config, are the settings that kohya knows."""
    assert flags_of(KOHYA, script).keys() == set(KOHYA_FLAGS[script].split())


@pytest.mark.parametrize("table", [DIFFUSERS, KOHYA, LAUNCHER], ids=["diffusers", "kohya", "launcher"])
def test_a_script_has_one_row_for_a_flag(table: tuple[Flag, ...]) -> None:
    """No script finds two rows for one name, of which the later would hide the earlier."""
    pairs = [(script, flag.name) for flag in table for script in flag.scripts]
    assert len(pairs) == len(set(pairs))


def exists(key: str) -> bool:
    """Is it a key of a sweep file?"""
    section, _, field = key.rpartition(".")
    if section.startswith("methods"):
        models = list(METHODS.values()) if section == "methods.*" else [METHODS[section.removeprefix("methods.")]]
        return all(field in model.model_fields for model in models)
    sections = {"": SweepConfig, "subject": SubjectConfig, "evaluation": EvaluationConfig}
    return field in sections[section].model_fields


@pytest.mark.parametrize("key", sorted({flag.key for flag in ALL if flag.key}))
def test_a_key_exists(key: str) -> None:
    """Every key that a row names is one of the sweep file's."""
    assert exists(key)


@pytest.mark.parametrize("flag", [flag for flag in ALL if flag.fate != "key"], ids=lambda flag: flag.name)
def test_a_flag_without_a_key_says_why(flag: Flag) -> None:
    """A reason is a few words, for it stands in brackets behind the name."""
    assert 2 <= len(flag.text.split()) <= 16
    assert "\n" not in flag.text
