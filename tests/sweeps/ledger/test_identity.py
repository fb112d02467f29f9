"""What makes two trials or two runs the same, today and after the next release.

pytest tests/sweeps/ledger/test_identity.py     two seconds
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

from evaluation.config import EvaluationConfig
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.identity import claim_subject, config_hash, evaluation_key, photos_key, trial_id, trial_name
from tests.sweeps.ledger_entries import entry, record
from training.canonical import added_in, canonical_json
from training.config import DreamBoothConfig, LoraConfig, SubjectConfig


def test_an_id_is_a_function_of_the_config_alone() -> None:
    """Equal configs have one id in every process; any other value gives another."""
    config = LoraConfig(rank=16, learning_rate=1e-4)
    program = (
        "from sweeps.ledger.identity import trial_id; from training.config import LoraConfig;"
        "print(trial_id(LoraConfig(learning_rate=1e-4, rank=16)))"
    )
    elsewhere = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)  # noqa: S603
    assert elsewhere.stdout.strip() == trial_id(config)
    assert re.fullmatch(r"lora_r16_lr1e-4_[0-9a-f]{6}", trial_id(config))
    assert trial_id(config.model_copy(update={"adam_beta1": 0.8})) != trial_id(config)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (LoraConfig(rank=4, learning_rate=3.25e-5), "lora_r4_lr3.25e-5"),
        (LoraConfig(rank=4, learning_rate=1.0, seed=7), "lora_r4_lr1e0_s7"),
        (DreamBoothConfig(learning_rate=5e-6), "dreambooth_lr5e-6"),
    ],
)
def test_a_name_says_method_rank_rate_and_an_unusual_seed(config: LoraConfig | DreamBoothConfig, name: str) -> None:
    """What a dashboard shows is short and safe as a folder's name."""
    assert trial_name(config) == name


# --- across releases -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "hash_of_0_1_0"),
    [
        (LoraConfig(), "f280341218b3a07e31cca0119e9346b26553758657fdf0d85402e453aeca4ab2"),
        (
            LoraConfig(rank=16, learning_rate=1e-4),
            "3e5b935d9a93e3839c1b66a091fa6f8a3fe9a9a7ab6b3b7083f7e8d37e61f3a3",
        ),
        (DreamBoothConfig(), "8c0b6934aa95174a99d794cbb9dc7e4ca71bb892c6374563f87be809a961bf21"),
        (
            DreamBoothConfig(learning_rate=2.5e-6, with_prior_preservation=True, snr_gamma=5, train_text_encoder=True),
            "c89d36c09705cbef900b2ca7d5a3b3f20ffa2d182b1e8a7ed0e4a0d817a0f85a",
        ),
    ],
)
def test_a_trial_keeps_its_hash(config: LoraConfig | DreamBoothConfig, hash_of_0_1_0: str) -> None:
    """As version 0.1.0 computed it. Fails when a field is added without `json_schema_extra=added_in(...)`."""
    assert config_hash(config) == hash_of_0_1_0


def test_a_run_keeps_the_keys_of_its_photos_and_its_evaluation() -> None:
    """As version 0.1.0 computed them, accents and all: its run folders go on being run."""
    evaluation = EvaluationConfig(prompts=["sks woman, lächelnd", "b"], at_steps=[2, 4], guidance_scale=7.0)
    assert evaluation_key(evaluation) == "83bec5962d4a8d7a249f4dabd1596a8e040b34989b2ec947886f468a8ef12857"
    subject = SubjectConfig(photos=Path("x"), instance_prompt="a photo of sks woman", class_prompt="a photo of a wöman")
    assert canonical_json(subject, exclude={"photos"}) == (
        '{"instance_prompt":"a photo of sks woman","class_prompt":"a photo of a wöman","rare_token":null,'
        '"resolution":512,"crop":"face","random_flip":false}'
    )


class Before(BaseModel):
    """A config as a release had it."""

    rank: int = 4
    rate: float = 1e-4


class After(Before):
    """The same, a release later."""

    dropout: float = Field(default=0.0, json_schema_extra=added_in("0.2.0"))
    tags: list[str] = Field(default_factory=list, json_schema_extra=added_in("0.2.0"))


@pytest.mark.parametrize("values", [{}, {"rank": 8}, {"rate": 3e-5}])
def test_a_field_that_came_later_changes_no_config_that_does_not_use_it(values: dict[str, Any]) -> None:
    """Left out, or given with its default value: the text of before; used: another one."""
    before = canonical_json(Before(**values))
    assert canonical_json(After(**values)) == canonical_json(After(**values, dropout=0.0, tags=[])) == before
    assert canonical_json(After(**values, dropout=0.1)) != before
    assert canonical_json(After(**values, tags=["a"])) != before


# --- of whom a run is


def subject_of(photos: Path, **changes: Any) -> SubjectConfig:
    return SubjectConfig(
        photos=photos, **{"instance_prompt": "a photo of sks woman", "class_prompt": "a photo of a woman", **changes}
    )


def test_the_token_is_part_of_a_run(photos: Path, tmp_path: Path) -> None:
    """Guessed or given it is the same run; another one is refused by name."""
    folder = RunFolder(tmp_path / "run")
    claim_subject(folder, subject_of(photos), None, "sks")
    claim_subject(folder, subject_of(photos).model_copy(update={"rare_token": "SKS"}), None, "SKS")
    with pytest.raises(ValueError, match="another rare token"):
        claim_subject(folder, subject_of(photos).model_copy(update={"rare_token": "woman"}), None, "woman")


def test_a_run_of_0_1_goes_on_where_its_guess_was_the_same(photos: Path, tmp_path: Path) -> None:
    """It claims photos alone; a token given then is part of that claim, and what CLIP read is known from either."""
    for number, changes in enumerate(({}, {"rare_token": "sks"})):
        folder = RunFolder(tmp_path / str(number))
        subject = subject_of(photos, **changes)
        folder.claim("photos", photos_key(subject, None))
        folder.write(record("base", entry(0)))
        claim_subject(folder, subject, None, "sks")
        assert folder.identity().get("rare_token") == "sks"


@pytest.mark.parametrize("changes", [{}, {"rare_token": "sks"}])
def test_a_run_of_0_1_that_guessed_otherwise_is_not_gone_on_with(
    photos: Path, tmp_path: Path, changes: dict[str, str]
) -> None:
    """Its pictures were compared with other texts: both tokens are named. Without scores there is nothing to mix."""
    folder = RunFolder(tmp_path / "run")
    subject = subject_of(photos, instance_prompt="A photo of sks woman")
    folder.claim("photos", photos_key(subject, None))
    folder.write(record("base", entry(0)))
    with pytest.raises(ValueError, match="took 'A sks' for the rare token; it is 'sks'"):
        claim_subject(folder, subject.model_copy(update=changes), None, "sks")
    unscored = RunFolder(tmp_path / "unscored")
    unscored.claim("photos", photos_key(subject, None))
    claim_subject(unscored, subject.model_copy(update=changes), None, "sks")


def test_allowing_a_prompt_is_no_other_evaluation() -> None:
    """The permission makes no picture: an older run whose prompts need it goes on with it."""
    evaluation = EvaluationConfig(prompts=["a woman"], at_steps=[2])
    allowed = evaluation.model_copy(update={"prompts_without_token": "allow"})
    assert evaluation_key(allowed) == evaluation_key(evaluation)
