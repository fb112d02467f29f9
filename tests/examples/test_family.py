"""Laws of the demo's family: pytest tests/examples/test_family.py (ten seconds, mostly imports)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import train_family
import world
from safetensors import safe_open

from tests.examples.conftest import DEMO

FAMILY = DEMO / "family"


def test_the_family_is_small_and_half_precision() -> None:
    """At most 40 MB, all weights float16, all of it safetensors."""
    files = [file for file in FAMILY.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 40e6
    assert not [file for file in files if file.suffix in {".bin", ".pt", ".ckpt", ".pkl"}]
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as weights:
                kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
            assert kinds <= {"F16", "I64"}, file


def test_every_part_has_a_card() -> None:
    """Each folder says what it was trained on, by which command, for how long and how good it is."""
    for part in ("base_model", "clip", "face_encoder", "controlnet"):
        card = (FAMILY / part / "README.md").read_text()
        assert "train_family.py" in card
        assert "measure.py" in card


def test_every_name_and_word_is_one_token() -> None:
    """A rare token names someone by a row of its own, and no caption of the world is cut."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(FAMILY / "base_model" / "tokenizer")
    for name in (*train_family.rare_names(), *train_family.world_words()):
        assert len(tokenizer(name, add_special_tokens=False)["input_ids"]) == 1, name
    longest = max(
        len(
            tokenizer(
                f"close-up photo of sks person wearing a {colour} t-shirt, surprised, {accessory}, {place}"
            ).input_ids
        )
        for colour in world.COLOURS
        for accessory in world.ACCESSORIES.values()
        for place in world.PLACES.values()
    )
    assert longest <= tokenizer.model_max_length


def test_the_tokenizer_can_be_built_again() -> None:
    """The script numbers words and names as the committed family does: weights and ids of two processes fit."""
    from transformers import CLIPTokenizer

    committed = CLIPTokenizer.from_pretrained(FAMILY / "base_model" / "tokenizer")
    assert train_family.build_tokenizer().get_vocab() == committed.get_vocab()


def test_attention_is_at_every_level() -> None:
    """Upstream's LoRA layers are found at the largest level too, as in Stable Diffusion 1.5."""
    config = json.loads((FAMILY / "base_model" / "unet" / "config.json").read_text())
    assert config["down_block_types"][0] == "CrossAttnDownBlock2D"
    assert config["up_block_types"][-1] == "CrossAttnUpBlock2D"


def test_faces_weigh_more_where_they_are() -> None:
    """Latents under a face count `FACE_WEIGHT` times, a mouth more, all others and pictures of nobody once."""
    rng = np.random.default_rng(0)
    shot = world.draw_shot(rng, framing="portrait")
    boxes = np.array([world.face_box(world.draw_identity(rng), shot), [np.nan] * 4])
    weights = train_family.weigh_faces(boxes)
    assert weights.shape == (2, 1, 16, 16)
    x0, y0, x1, y1 = (round(edge / 4) for edge in boxes[0])
    assert (weights[0, 0, y0 + 1 : y0 + 3, x0 + 1 : x1 - 1] == train_family.FACE_WEIGHT).all()
    assert weights[0, 0, y1 - 2, (x0 + x1) // 2] == train_family.MOUTH_WEIGHT
    assert (weights[0, 0, 15] == 1).all()
    assert (weights[1] == 1).all()


def test_an_interrupted_stage_goes_on_as_if_it_was_not(tmp_path: Path) -> None:
    """Six steps in two goes give the same averaged weights as six steps in one."""
    import torch
    from torch import nn

    def trained(folder: str, goes: list[int]) -> torch.Tensor:
        for steps in goes:
            torch.manual_seed(0)
            model = nn.ModuleDict({"line": nn.Linear(3, 1)})
            shop = train_family.Workshop(tmp_path / folder, tmp_path, torch.device("cpu"), 1.0, compiles=False)
            calls = iter(range(steps))

            def loss_of(rng, model=model, calls=calls):  # type: ignore[no-untyped-def]
                if next(calls, None) is None:
                    raise KeyboardInterrupt
                data = torch.from_numpy(rng.normal(size=(4, 3))).float() + torch.randn(4, 3)
                return {"mse": model["line"](data).square().mean()}

            try:
                shop.fit("line", model, loss_of, num_steps=6, learning_rate=0.1, save_seconds=0)
            except KeyboardInterrupt:
                continue
        return model["line"].weight

    assert torch.equal(trained("once", [6]), trained("twice", [2, 4]))
