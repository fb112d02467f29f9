"""Where LoRA trainings start that do not start from nothing: a LoRA file, kept in the dataset's folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from training.config import LoraConfig
from training.dataset import Dataset
from training.lora_file import PEFT_CONFIG, read_lora_file, with_lora_file
from training.lora_names import find_lora_file
from training.methods import LoraTensors, first_lora

INITIAL_WEIGHTS = "initial_weights"
"""Folder of a dataset with the file that its LoRA trainings start from."""


def keep_initial_weights(source: Path, dataset_dir: Path) -> None:
    """Copy a LoRA file, with the settings that peft has beside it, to where trainings look for it.

    Raises:
        UserError: there is no LoRA file.
    """
    file = find_lora_file(source)
    settings = file.with_name(PEFT_CONFIG)
    folder = dataset_dir / INITIAL_WEIGHTS
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for each in (file, settings):
        if each.is_file():
            shutil.copyfile(each, folder / each.name)


def start_of_lora(config: LoraConfig, dataset: Dataset) -> LoraTensors | None:
    """The adapters that a training starts from, on the CPU; None where it draws its own.

    Raises:
        UserError: from `read_lora_file` or `with_lora_file`.
    """
    folder = dataset.dir / INITIAL_WEIGHTS
    if not folder.is_dir():
        return None
    lora = read_lora_file(folder, dataset.base_model)
    return with_lora_file(first_lora(config, dataset.base_model), lora, config.scale * config.rank)
