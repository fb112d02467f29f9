"""Where LoRA trainings start that do not start from nothing: a LoRA file, kept in the dataset's folder."""

from __future__ import annotations

from training.config import LoraConfig
from training.dataset import Dataset
from training.lora_file import read_lora_file, with_lora_file
from training.methods import LoraTensors, first_lora
from training.preparation import INITIAL_WEIGHTS


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
