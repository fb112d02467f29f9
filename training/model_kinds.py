"""What a file or folder is that is no base model, in words for whoever gave it in place of one. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from training.architecture import TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX
from training.errors import UserError
from training.layout import LORA_FILE, STATE_FILE
from training.weights import read_json, read_weights

Shapes = Mapping[str, tuple[int, ...]]

INDEX_FILE = "model_index.json"
NEEDED = (
    "need a whole Stable Diffusion 1.x model: a diffusers folder (with model_index.json), or one .safetensors "
    "checkpoint with UNet, VAE and text encoder"
)
FIRST_NAMES = 3

KINDS_BY_NAME: tuple[tuple[str, str], ...] = (
    (r"(^|\.|_)lora[_.]|\.(hada_w1|lokr_w1|oft_blocks|lora_[AB])", "a LoRA, which changes a base model and is none"),
    (r"emb_params$|string_to_param|^(clip_l|clip_g|<.+>)$", "a textual inversion embedding"),
    (r"motion_modules\.", "a motion module (AnimateDiff)"),
    (r"^control_model\.|controlnet_cond_embedding\.|^controlnet_|input_hint_block\.", "a ControlNet"),
    (r"^(adapter\.)?body\.\d+\.(resnets|block1|in_conv)", "a T2I adapter"),
    (r"^(image_proj|ip_adapter)\.|^image_proj_model\.", "an IP-Adapter"),
    (r"^conditioner\.embedders\.1\.", "a Stable Diffusion XL checkpoint"),
    (r"^conditioner\.embedders\.0\.model\.", "a Stable Diffusion XL refiner checkpoint"),
    (r"(^|\.)joint_blocks\.", "a Stable Diffusion 3 model"),
    (r"(^|\.)(double_blocks|single_transformer_blocks|double_stream_blocks)\.", "a Flux model"),
    (r"^cond_stage_model\.model\.", "a Stable Diffusion 2 checkpoint"),
    (r"^concept_embeds$|^special_care_embeds$", "a safety checker"),
    (r"^encoder\.block\.\d+\.layer\.", "a T5 text encoder"),
    (r"^conv2d_1a\.", "a face encoder (InceptionResnetV1)"),
    (r"^(visual|vision_model)\.", "a whole CLIP model or its picture half"),
    (r"^model\.layers\.\d+\.self_attn\.", "a language model"),
    (r"^(conv_first|model\.0|params_ema)\.", "an upscaler (ESRGAN)"),
    (r"^(model\.diffusion_model\.)?transformer_blocks\.\d+\.", "a diffusion transformer of another family"),
)
"""The first pattern that a tensor's name matches tells the kind of file."""

UNET_INPUTS = {
    9: "an inpainting model (its UNet takes 9 channels)",
    8: "an image-editing model (InstructPix2Pix; its UNet takes 8 channels)",
    7: "an upscaler (its UNet takes 7 channels)",
    5: "a depth model (its UNet takes 5 channels)",
}
SD2_TEXT_WIDTH, SDXL_TEXT_WIDTHS = 1024, (2048, 1280)

MODEL_CLASSES = {
    "UNet2DConditionModel": "the UNet alone",
    "AutoencoderKL": "a VAE alone",
    "AutoencoderTiny": "a tiny VAE (TAESD) alone",
    "ControlNetModel": "a ControlNet",
    "T2IAdapter": "a T2I adapter",
    "MotionAdapter": "a motion module (AnimateDiff)",
    "CLIPTextModel": "a text encoder alone",
    "CLIPModel": "a CLIP model",
}
PIPELINES = (
    ("Refiner", "a Stable Diffusion XL refiner"),
    ("StableDiffusionXL", "a Stable Diffusion XL model"),
    ("StableDiffusion3", "a Stable Diffusion 3 model"),
    ("Flux", "a Flux model"),
    ("Inpaint", "an inpainting model"),
    ("Depth2Img", "a depth model"),
    ("InstructPix2Pix", "an image-editing model (InstructPix2Pix)"),
    ("Upscale", "an upscaler"),
    ("LatentConsistency", "a latent consistency model"),
    ("ControlNet", "a pipeline with a ControlNet"),
)
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


def kind_of_file(shapes: Shapes) -> str | None:
    """What a file with these tensors is, or None where it may be a checkpoint of Stable Diffusion 1."""
    for pattern, kind in KINDS_BY_NAME:
        if any(re.search(pattern, name) for name in shapes):
            return kind
    other = kind_of_unet(shapes, UNET_PREFIX)
    if other is not None:
        return other
    has = {prefix: any(name.startswith(prefix) for name in shapes) for prefix in (UNET_PREFIX, VAE_PREFIX, TEXT_PREFIX)}
    if has[UNET_PREFIX]:
        return None if has[VAE_PREFIX] or has[TEXT_PREFIX] else "a UNet alone, without VAE and text encoder"
    if has[VAE_PREFIX] or {"encoder.conv_in.weight", "decoder.conv_in.weight"} & shapes.keys():
        return "a VAE alone"
    if any(name.startswith(("input_blocks.", "down_blocks.", "mid_block.")) for name in shapes):
        return kind_of_unet(shapes, "") or "a UNet alone, without VAE and text encoder"
    if any("embeddings.token_embedding.weight" in name for name in shapes):
        return "a text encoder alone"
    if any("embeddings.position_ids" in name or name.endswith("word_embeddings.weight") for name in shapes):
        return "a language model"
    first = ", ".join(list(shapes)[:FIRST_NAMES])
    return f"no model that is known here (its first tensors: {first})"


def kind_of_unet(shapes: Shapes, prefix: str) -> str | None:
    """What model a UNet is of, or None where it may be Stable Diffusion 1's."""
    if f"{prefix}label_emb.0.0.weight" in shapes or f"{prefix}add_embedding.linear_1.weight" in shapes:
        return "a Stable Diffusion XL model"
    for stem in ("input_blocks.0.0.weight", "conv_in.weight"):
        shape = shapes.get(prefix + stem, ())
        if len(shape) > 1 and shape[1] in UNET_INPUTS:
            return UNET_INPUTS[shape[1]]
    widths = {
        shape[-1]
        for name, shape in shapes.items()
        if name.startswith(prefix) and name.endswith("attn2.to_k.weight") and shape
    }
    if SD2_TEXT_WIDTH in widths:
        return "a Stable Diffusion 2 model (its text embeddings are 1024 wide)"
    if widths & set(SDXL_TEXT_WIDTHS):
        return "a Stable Diffusion XL model"
    return None


def kind_of_pipeline(class_name: str, parts: Mapping[str, object]) -> str | None:
    """What another pipeline's `model_index.json` is of, or None where it may be Stable Diffusion 1's."""
    for part, kind in PIPELINES:
        if part in class_name:
            return kind
    if "transformer" in parts:
        return f"a diffusion transformer ({class_name})"
    if "text_encoder_2" in parts:
        return f"a model with two text encoders ({class_name})"
    if "prior" in parts or "unet" not in parts:
        return f"a {class_name} pipeline"
    return None


def kind_of_folder(folder: Path) -> tuple[str, str]:
    """What a folder without `model_index.json` is, and what to name instead."""
    names = sorted(file.name for file in folder.iterdir())
    snapshot = _snapshot(folder)
    if snapshot is not None:
        return "a model's folder in the hub's cache", f"name its snapshot: {snapshot}"
    inner = [str(folder / name) for name in names if (folder / name / INDEX_FILE).is_file()]
    if inner:
        return "a folder around the model", f"name {', or '.join(inner)}"
    if (folder.parent / INDEX_FILE).is_file() and folder.name in PARTS:
        return "one part of a model", f"name the whole: {folder.parent}"
    if "checkpoint.json" in names or STATE_FILE in names:
        return "a checkpoint of a sweep's trial, not a whole model", NEEDED
    if "sweep.yaml" in names and "trials" in names:
        return "a sweep's run folder", NEEDED
    if LORA_FILE in names or "adapter_config.json" in names:
        return "a LoRA, which changes a base model and is none", NEEDED
    if "config.json" in names:
        return _kind_by_config(folder / "config.json"), NEEDED
    if "tokenizer_config.json" in names or "vocab.json" in names:
        return "a tokenizer alone", NEEDED
    if "scheduler_config.json" in names:
        return "a scheduler's config alone", NEEDED
    parts = [name for name in PARTS if name in names]
    if parts:
        return f"a diffusers folder that is not whole: it holds {', '.join(parts)}", "copy or download it again"
    return _kind_by_files(folder, names)


def _snapshot(folder: Path) -> Path | None:
    snapshots = folder if folder.name == "snapshots" else folder / "snapshots"
    if not snapshots.is_dir():
        return None
    with_index = [path for path in snapshots.iterdir() if (path / INDEX_FILE).is_file()]
    return max(with_index, key=lambda path: path.stat().st_mtime, default=None)


def _kind_by_config(config_file: Path) -> str:
    try:
        config = read_json(config_file)
    except UserError:
        return "no diffusers folder, and its config.json is broken"
    architectures = config.get("architectures")
    named = config.get("_class_name") or (
        architectures[0] if isinstance(architectures, list) and architectures else None
    )
    named = named or config.get("model_type")
    if not isinstance(named, str):
        return "no diffusers folder: its config.json names no model"
    return MODEL_CLASSES.get(named, f"a model of its own ({named})")


def _kind_by_files(folder: Path, names: list[str]) -> tuple[str, str]:
    files = [folder / name for name in names if name.endswith(".safetensors")]
    models = [str(file) for file in files if _may_be_checkpoint(file)]
    if models:
        return "a folder of single files", f"name one of them: {', '.join(models[:FIRST_NAMES])}"
    if files:
        return f"a folder of files of another kind ({files[0].name}, ...)", NEEDED
    if any(name.startswith("models--") for name in names):
        return "a hub cache", "name a model by its hub id (owner/name)"
    if any(name.endswith((".ckpt", ".bin", ".pt", ".pth")) for name in names):
        return "a folder of pickles, which can run code when they are opened", NEEDED
    if not names:
        return "an empty folder", NEEDED
    return f"a folder of something else ({', '.join(names[:FIRST_NAMES])}, ...)", NEEDED


def _may_be_checkpoint(file: Path) -> bool:
    try:
        return kind_of_file(read_weights(file).shapes) is None
    except UserError:
        return False
