"""Laws of ControlNet renders, on tiny models. `pytest tests/evaluation/test_render.py`, half a minute."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline, StableDiffusionPipeline, UniPCMultistepScheduler
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from evaluation.checks import check_render
from evaluation.config import RenderConfig
from evaluation.reference_labels import reference_labels
from evaluation.render import (
    Render,
    condition_image,
    contact_sheet,
    load_controlnet,
    render_references,
    render_size,
)


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A small upright drawing and a large lying one."""
    folder = tmp_path_factory.mktemp("references")
    paths = []
    for name, size in (("upright.png", (50, 74)), ("lying.jpg", (640, 300))):
        image = Image.new("RGB", size, "white")
        ImageDraw.Draw(image).ellipse((size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 2), fill="navy")
        paths.append(folder / name)
        image.save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def pipeline(tiny_base: str) -> StableDiffusionPipeline:
    """The tiny base, loaded as a checkpoint is."""
    return StableDiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)


def config(references: list[Path], controlnet: str, **changes: Any) -> RenderConfig:
    return RenderConfig(
        **{
            "references": references,
            "controlnet": controlnet,
            "resolution": 128,
            "num_inference_steps": 3,
            **changes,
        }
    )


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(8, 128).map(lambda n: 8 * n))
@example(800, 1205, 512)  # Mona Lisa
@example(1024, 600, 512)
def test_sizes_are_multiples_of_8_with_the_references_aspect(width: int, height: int, resolution: int) -> None:
    """The longer side is the resolution, the other at most 8 px below the exact aspect, and never below 64."""
    size = render_size(width, height, resolution)
    assert all(side % 8 == 0 and side >= 64 for side in size)
    assert max(size) == resolution
    exact = resolution * min(width, height) / max(width, height)
    assert min(size) == 64 or exact - 8 < min(size) <= exact + 1e-5
    assert (width >= height) == (size[0] >= size[1]) or size[0] == size[1]


def test_the_reference_experiments_sizes() -> None:
    """Mona Lisa at 340x512 and a 512x300 photo are rendered at 336x512 and 512x296, rounded down."""
    assert render_size(340, 512, 512) == (336, 512)
    assert render_size(512, 300, 512) == (512, 296)


def test_one_render_a_reference(
    pipeline: StableDiffusionPipeline, references: list[Path], tiny_controlnet: str
) -> None:
    """In the references' order, at the references' aspect, the condition as large as the picture."""
    renders = render_references(pipeline, config(references, tiny_controlnet), "portrait of sks woman")
    assert [render.reference for render in renders] == ["upright.png", "lying.jpg"]
    assert [render.image.size for render in renders] == [(80, 128), (128, 64)]
    assert [render.condition.size for render in renders] == [(80, 128), (128, 64)]
    assert [render.reference_image.size for render in renders] == [(50, 74), (640, 300)]


def test_renders_equal_plain_diffusers(
    pipeline: StableDiffusionPipeline, references: list[Path], tiny_controlnet: str
) -> None:
    """The picture of diffusers' own ControlNet pipeline with UniPC, the condition, and a CPU generator made anew."""
    settings = config(references[:1], tiny_controlnet)
    (ours,) = render_references(pipeline, settings, "portrait")
    plain = StableDiffusionControlNetPipeline(
        **{**pipeline.components, "scheduler": UniPCMultistepScheduler.from_config(pipeline.scheduler.config)},
        controlnet=load_controlnet(tiny_controlnet, "cpu", torch.float32),
        requires_safety_checker=False,
    )
    (expected,) = plain(
        "portrait",
        negative_prompt=settings.negative_prompt,
        image=ours.condition,
        generator=torch.Generator("cpu").manual_seed(20240410),
        num_inference_steps=3,
        guidance_scale=9.0,
    ).images
    assert np.abs(np.asarray(ours.image, int) - np.asarray(expected, int)).max() <= 1


def test_the_condition_reaches_the_picture(
    pipeline: StableDiffusionPipeline, references: list[Path], tiny_controlnet: str
) -> None:
    """Another condition or conditioning scale gives another picture; the same call the same one."""
    settings = config(references[:1], tiny_controlnet)
    (first,) = render_references(pipeline, settings, "portrait")
    (again,) = render_references(pipeline, settings, "portrait")
    assert first.image.tobytes() == again.image.tobytes()
    for change in ({"controlnet_conditioning_scale": 0.0}, {"detector": "lineart_standard"}, {"prompt": "a castle"}):
        (other,) = render_references(pipeline, settings.model_copy(update=change), "portrait")
        assert np.abs(np.asarray(first.image, int) - np.asarray(other.image, int)).max() > 1, change


def test_the_pipeline_comes_back_as_it_was(
    pipeline: StableDiffusionPipeline, references: list[Path], tiny_controlnet: str
) -> None:
    """Rendering leaves weights and scheduler alone, and draws nothing from the global generators."""
    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    scheduler, torch_state, numpy_state = pipeline.scheduler, torch.get_rng_state(), np.random.get_state()[1].copy()
    render_references(pipeline, config(references, tiny_controlnet, detector="shuffle"), "portrait")
    assert all(torch.equal(before[name], value) for name, value in pipeline.unet.state_dict().items())
    assert pipeline.scheduler is scheduler
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_canny_equals_controlnet_auxs_where_that_keeps_the_size(references: list[Path], tiny_controlnet: str) -> None:
    """On sides that are multiples of 64 px both see the same edges; ours sees them at any size."""
    from controlnet_aux import CannyDetector

    square = Image.open(references[1]).convert("RGB").resize((128, 128), Image.Resampling.LANCZOS)
    settings = config(references, tiny_controlnet, low_threshold=50, high_threshold=120)
    expected = CannyDetector()(square, 50, 120, detect_resolution=128, image_resolution=128)
    ours = condition_image(square, settings)
    assert ours.tobytes() == expected.tobytes()
    assert set(np.unique(ours)) == {0, 255}


@pytest.mark.parametrize("detector", ["canny", "lineart_standard", "shuffle"])
def test_conditions_have_the_renders_size(detector: str, references: list[Path], tiny_controlnet: str) -> None:
    """Whatever a detector rounds to, the condition has the size of the render, and is the same for every trial."""
    settings = config(references, tiny_controlnet, detector=detector)
    for path in references:
        image = Image.open(path).convert("RGB")
        condition = condition_image(image, settings)
        assert condition.size == render_size(*image.size, 128)
        assert condition.mode == "RGB"
        assert condition.tobytes() == condition_image(image, settings).tobytes()


def test_a_contact_sheet_shows_every_trial(references: list[Path]) -> None:
    """Reference, condition and a column for each trial; trials with other references don't fit."""

    def render(name: str, colour: str) -> Render:
        return Render(
            name,
            Image.new("RGB", (40, 40), "red"),
            Image.new("RGB", (40, 40), "lime"),
            Image.new("RGB", (40, 40), colour),
        )

    sheet = contact_sheet({"first": [render("a", "blue")], "second": [render("a", "magenta")]}, cell_size=40)
    colours = {(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 255)}
    counts = {colour: count for count, colour in sheet.getcolors(1 << 20) or [] if colour in colours}
    assert counts == dict.fromkeys(colours, 1600)
    with pytest.raises(ValueError, match="same references"):
        contact_sheet({"first": [render("a", "blue")], "second": [render("b", "blue")]})
    with pytest.raises(ValueError, match="1 or more"):
        contact_sheet({})


def test_a_controlnet_of_another_layout_is_refused(
    pipeline: StableDiffusionPipeline, references: list[Path], tiny_controlnet: str, tmp_path: Path
) -> None:
    """A ControlNet for another base model is told by what differs; a folder that is none by its name."""
    from diffusers import ControlNetModel

    other = ControlNetModel(
        block_out_channels=(8, 8, 16, 16),
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=4,
        conditioning_embedding_out_channels=(4, 8, 8, 16),
    )
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="block_out_channels"):
        render_references(pipeline, config(references, str(tmp_path / "other")), "portrait")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"config\.json"):
        check_render(config(references, str(tmp_path / "empty")))
    shutil.copytree(tiny_controlnet, tmp_path / "no-weights")
    (tmp_path / "no-weights" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match="no-weights"):
        render_references(pipeline, config(references, str(tmp_path / "no-weights")), "portrait")


NAMES = ["m.jpg", "m.png", "M.jpg", "n.jpg", "a m.jpg", "m 2.jpg"]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(NAMES))))
def test_no_two_references_share_a_name(paths: list[tuple[str, str]]) -> None:
    """Renders are files of these names without suffix, also where upper and lower case are the same."""
    labels = reference_labels([Path(folder) / name for folder, name in paths])
    assert len({Path(label).stem.casefold() for label in labels}) == len(paths)
    assert not any("/" in label for label in labels)


def test_a_reference_that_is_alone_in_its_name_keeps_it() -> None:
    """What its folder is called does not matter then."""
    assert reference_labels([Path("a/mona.jpg"), Path("b/pearl.png")]) == ["mona.jpg", "pearl.png"]
    assert reference_labels([Path("a/mona.jpg"), Path("b/mona.png")]) == ["a mona.jpg", "b mona.png"]
