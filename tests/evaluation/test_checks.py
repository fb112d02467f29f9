"""Laws of what is refused before anything is trained. `pytest tests/evaluation/test_checks.py`, half a minute."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from evaluation.checks import check_clip, check_render
from evaluation.config import ClipConfig, RenderConfig

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "open_clip", "diffusers", "transformers", "facenet_pytorch", "controlnet_aux", "cv2")


def heavy_modules_after(code: str, *arguments: str) -> list[str]:
    """Which of `HEAVY` a fresh interpreter has loaded when it has run `code`, told what `arguments` are."""
    report = f"\nimport sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    fresh = subprocess.run(  # noqa: S603 -- our own code
        [sys.executable, "-c", code + report, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert fresh.returncode == 0, fresh.stderr
    return fresh.stdout.split()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("references") / "reference.png"
    Image.new("RGB", (50, 74), "navy").save(path)
    return path


# --- what a check costs


def test_checking_and_comparing_load_nothing_heavy() -> None:
    """Names, references, records and scoring itself are there without torch; the judges bring it."""
    light = "checks, config, detectors, dlib_face, face, face_encoders, rare_token, references, score, scores"
    assert heavy_modules_after(f"from evaluation import {light}") == []
    assert heavy_modules_after("import evaluation.prompt") == ["torch"], "or this test could not fail"


def test_a_sweep_for_another_machine_is_checked_without_torch(
    tiny_clip: str, tiny_controlnet: str, tiny_face_weights: str, reference: Path
) -> None:
    """All that names and small local files tell: judges and ControlNet, local ones and the defaults."""
    code = """
import sys
from pathlib import Path
from evaluation.checks import check_clip, check_render
from evaluation.config import ClipConfig, RenderConfig
from evaluation.face_encoders import check_face_encoder
clip, controlnet, reference, *encoders = sys.argv[1:]
for encoder in encoders:
    check_face_encoder(encoder, weights_present=False)
for judge in (ClipConfig(), ClipConfig(model=clip, pretrained=None), ClipConfig(model="hf-hub:owner/name")):
    check_clip(judge, weights_present=False)
for name in (controlnet, "lllyasviel/sd-controlnet-canny"):
    check_render(RenderConfig(references=[Path(reference)], controlnet=name), weights_present=False)
"""
    folder = str(ROOT / "examples" / "demo" / "family" / "face_encoder")
    encoders = ("vggface2", "casia-webface", folder, tiny_face_weights)
    assert heavy_modules_after(code, tiny_clip, tiny_controlnet, str(reference), *encoders) == []


# --- CLIP


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ClipConfig(model="ViT-B-33"), "ViT-B-32"),
        (ClipConfig(pretrained=None), "needs `pretrained`"),
        (ClipConfig(pretrained="laion2b_s34b"), "laion2b_s34b_b79k"),
        (ClipConfig(model="local-dir:/nowhere", pretrained=None), "open_clip_config.json"),
        (ClipConfig(), "cannot be downloaded"),
        (ClipConfig(model="hf-hub:someone/something", pretrained=None), "cannot be downloaded"),
    ],
)
def test_a_clip_that_cannot_be_loaded_is_refused(config: ClipConfig, message: str) -> None:
    """An unknown model or tag, no weights, or weights out of reach: told with what would do."""
    with pytest.raises(ValueError, match=message):
        check_clip(config)


@pytest.mark.parametrize(
    "config",
    [
        ClipConfig(model="ViT-B-33"),
        ClipConfig(pretrained=None),
        ClipConfig(pretrained="laion2b_s34b"),
        ClipConfig(model="local-dir:/nowhere", pretrained=None),
    ],
)
def test_an_unknown_clip_is_refused_on_every_machine(config: ClipConfig) -> None:
    """A name that no machine can load is told where the weights are not yet."""
    with pytest.raises(ValueError, match="CLIP"):
        check_clip(config, weights_present=False)


def test_a_known_clip_needs_no_weights_here() -> None:
    """A known model and tag pass where the weights are asked for later; the default is one that open_clip has."""
    import open_clip

    default = ClipConfig()
    assert default.pretrained in open_clip.list_pretrained_tags_by_model(default.model)
    check_clip(default, weights_present=False)
    check_clip(ClipConfig(model="ViT-L-14", pretrained="openai"), weights_present=False)


# --- renders


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detector": "cany"}, "render.detector: need one of canny.*got 'cany'"),
        ({"low_threshold": 201}, "low_threshold <= high_threshold"),
        ({"references": [Path("nowhere.png")]}, r"nowhere\.png"),
        ({"controlnet": "/nowhere/controlnet"}, "folder or a hub id"),
        ({"controlnet": "someone/no-controlnet"}, "someone/no-controlnet"),
        ({"detector": "openpose"}, "openpose has to be downloaded"),
    ],
)
def test_renders_that_cannot_be_made_are_refused(
    changes: dict[str, Any], message: str, reference: Path, tiny_controlnet: str
) -> None:
    """Before anything is trained: unknown detector, crossed thresholds, missing reference or weights."""
    config = RenderConfig(references=[reference], controlnet=tiny_controlnet)
    check_render(config)
    with pytest.raises(ValueError, match=message):
        check_render(config.model_copy(update=changes))


def test_renders_on_another_machine_need_no_weights_here(reference: Path) -> None:
    """A hub id passes where its weights are asked for later; so does a sweep without renders."""
    hub = RenderConfig(references=[reference], controlnet="lllyasviel/sd-controlnet-canny")
    check_render(hub, weights_present=False)
    check_render(hub.model_copy(update={"detector": "openpose"}), weights_present=False)
    check_render(RenderConfig())
