"""Laws of prompt alignment, on a small random CLIP. `pytest tests/evaluation/test_prompt.py`, half a minute."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.config import ClipConfig
from evaluation.prompt import load_clip, parse_clip, prompt_alignment

PROMPTS = ["a photo of sks woman", "sks woman in a garden", "a portrait of woman, smiling"]


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)) for _ in range(count)]


def test_alignment_is_a_cosine() -> None:
    """A vector with itself gives 1, with its opposite -1, whatever their length."""
    vectors = np.random.default_rng(0).normal(size=(5, 7))
    assert prompt_alignment(vectors, 3 * vectors) == pytest.approx(np.ones(5))
    assert prompt_alignment(vectors, -vectors) == pytest.approx(-np.ones(5))
    with pytest.raises(ValueError, match="finite"):
        prompt_alignment(vectors, 0 * vectors)


def test_alignment_equals_the_models_own_cosine(tiny_clip: str) -> None:
    """The scorer gives what open_clip's own forward pass gives for picture and text."""
    import open_clip
    import torch

    model, preprocess = open_clip.create_model_from_pretrained(tiny_clip)
    tokens = open_clip.get_tokenizer(tiny_clip)(PROMPTS)
    with torch.no_grad():
        image_features, text_features, _ = model(torch.stack([preprocess(p) for p in pictures(3)]), tokens)
    expected = (image_features * text_features).sum(dim=1).tolist()
    scorer = load_clip(ClipConfig(model=tiny_clip, pretrained=None), "cpu")
    assert scorer.prompt_alignment(pictures(3), PROMPTS) == pytest.approx(expected, abs=1e-6)


def test_alignment_does_not_depend_on_company(tiny_clip: str) -> None:
    """A picture's alignment is its own: the order and number of the others don't change it."""
    scorer = load_clip(ClipConfig(model=tiny_clip, pretrained=None), "cpu")
    images = pictures(20)
    prompts = [PROMPTS[i % 3] for i in range(20)]
    together = scorer.prompt_alignment(images, prompts)
    assert scorer.prompt_alignment(images[::-1], prompts[::-1])[::-1] == pytest.approx(together, abs=1e-6)
    assert scorer.prompt_alignment(images[7:8], prompts[7:8]) == pytest.approx(together[7:8], abs=1e-6)
    assert scorer.prompt_alignment([], []) == []
    with pytest.raises(ValueError, match="one a picture"):
        scorer.prompt_alignment(images, prompts[:1])


def test_a_model_is_loaded_once(tiny_clip: str) -> None:
    """A process keeps one copy of a CLIP model."""
    config = ClipConfig(model=tiny_clip, pretrained=None)
    assert load_clip(config, "cpu") is load_clip(config, "cpu")


def test_the_name_tells_the_weights_apart_and_no_folders(tiny_clip: str, tmp_path: Path) -> None:
    """Two sets of weights have two names; the machine's folders are in none."""
    from tests.tiny_models import build_clip

    other = build_clip(tmp_path / "tiny-clip", seed=1)
    names = [load_clip(ClipConfig(model=m, pretrained=None), "cpu").name for m in (tiny_clip, f"local-dir:{other}")]
    assert names[0] != names[1]
    assert all(name.startswith("local-dir:tiny-clip ") for name in names)


def test_a_folder_without_weights_is_refused(tiny_clip: str, tmp_path: Path) -> None:
    """open_clip would start such a model at random and score noise."""
    source = Path(tiny_clip.removeprefix("local-dir:"))
    shutil.copy(source / "open_clip_config.json", tmp_path)
    with pytest.raises(ValueError, match="no weights"):
        load_clip(ClipConfig(model=f"local-dir:{tmp_path}", pretrained=None))


def test_weights_of_another_model_are_refused(tiny_clip: str, tmp_path: Path) -> None:
    """Weights that do not fit are an error of the user's, not a traceback."""
    source = Path(tiny_clip.removeprefix("local-dir:"))
    config = json.loads((source / "open_clip_config.json").read_text())
    config["model_cfg"]["embed_dim"] = 8
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    shutil.copy(source / "open_clip_model.safetensors", tmp_path)
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_clip(ClipConfig(model=f"local-dir:{tmp_path}", pretrained=None))


def test_weights_with_another_gelu_get_it(monkeypatch: pytest.MonkeyPatch, tiny_clip: str) -> None:
    """Tags trained with QuickGELU under a model file without it (OpenAI's) load with QuickGELU."""
    import open_clip

    asked = {}

    def create(model: str, pretrained: str, device: str, force_quick_gelu: bool) -> None:
        asked[pretrained] = force_quick_gelu
        raise RuntimeError("enough")

    monkeypatch.setattr("evaluation.prompt.check_clip", lambda _: None)
    monkeypatch.setattr(open_clip, "create_model_from_pretrained", create)
    for tag in ("openai", "laion2b_s34b_b79k"):
        with pytest.raises(ValueError, match="enough"):
            load_clip(ClipConfig(pretrained=tag), "cpu")
    assert asked == {"openai": True, "laion2b_s34b_b79k": False}


def test_the_command_lines_form_is_read() -> None:
    """MODEL:PRETRAINED, a path, a local folder."""
    assert parse_clip("ViT-B-32:laion2b_s34b_b79k") == ClipConfig()
    assert parse_clip("ViT-L-14:/models/clip.pt") == ClipConfig(model="ViT-L-14", pretrained="/models/clip.pt")
    assert parse_clip("local-dir:/models/clip") == ClipConfig(model="local-dir:/models/clip", pretrained=None)
    for text in ("ViT-B-32", ":openai", ""):
        with pytest.raises(ValueError, match="MODEL:PRETRAINED"):
            parse_clip(text)


def test_a_prompt_that_the_model_would_cut_is_refused(tiny_clip: str) -> None:
    """With the words that would be lost; the longest that fits is scored."""
    scorer = load_clip(ClipConfig(model=tiny_clip, pretrained=None), "cpu")
    fits = " ".join(["garden"] * 75)  # and the tokens of begin and end
    assert len(scorer.prompt_alignment(pictures(1), [fits])) == 1
    with pytest.raises(ValueError, match=r"reads 77 tokens and would not read 'snow'"):
        scorer.prompt_alignment(pictures(1), [f"{fits} snow"])
