"""What the command line may ask before anything heavy is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from training.base_model import check_base_model

TORCH_FREE = [
    "training",
    "training.base_model",
    "training.config",
    "training.files",
    "training.paths",
    "training.photos",
    "training.pictures",
    "training.stats",
]

IMPORT_AND_LIST = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_checks_and_readers_import_neither_torch_nor_diffusers() -> None:
    """`dreamsweep check`, the report and the live page read configs, photos and files without seconds of imports."""
    root = Path(__file__).parents[2]
    listed = subprocess.run(  # noqa: S603
        [sys.executable, "-c", IMPORT_AND_LIST, *TORCH_FREE], cwd=root, check=True, capture_output=True, text=True
    )
    loaded = set(listed.stdout.split())
    assert "training" in loaded
    assert not loaded & {"torch", "torchvision", "diffusers", "transformers", "peft", "accelerate"}


@pytest.mark.parametrize("name", ["folder", "model.safetensors", "someone/something"])
def test_what_may_be_a_base_model_passes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A diffusers folder, a `.safetensors` file, and a hub id, which is not asked for."""
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("folder/model_index.json").write_text("{}")
    Path("model.safetensors").touch()
    check_base_model(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.ckpt", "is a pickle"),
        ("absent.safetensors", "no such file"),
        ("notes.txt", r"must be \.safetensors"),
        ("empty", r"no model_index\.json"),
        ("./someone/something", "no such file, folder or hub id"),
    ],
)
def test_what_is_no_base_model_is_refused_by_name(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with its own sentence, in which it stands."""
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("notes.txt").touch()
    with pytest.raises(ValueError, match=message) as refusal:
        check_base_model(name)
    assert name in str(refusal.value)
