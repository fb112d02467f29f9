"""Small models of random weights in the real ones' layout, so that tests run the real code paths offline."""

from __future__ import annotations

import gzip
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

NATIVE_SIZE = 64
"""Side of the tiny pipeline's pictures in pixels: 8x8 latents, VAE factor 8."""
WHOLE_UNET: dict[str, Any] = {"block_out_channels": (16, 16, 32, 32)}
"""Four levels with cross-attention in the first three, two layers each, as in Stable Diffusion 1.5."""
SHALLOW_UNET: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
}
"""One block of each kind: what costs a test its time is the number of modules, whatever their width."""


def plain_pipeline(folder: str | Path, **options: Any) -> StableDiffusionPipeline:
    """Plain diffusers' pipeline of a folder, each weight where memory for it begins, as ours has them.

    safetensors maps a file into memory, and on some processors MKL rounds by where a weight lies: there two
    pipelines of equal weights answer differently by bits, each always the same (with MKL_CBWR=AVX2,STRICT they do not).
    """
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, **options)
    for module in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        for parameter in module.parameters():
            parameter.data = parameter.data.clone()
    return pipeline


def build_pipeline(
    folder: str | Path, seed: int = 0, prediction_type: str = "epsilon", *, shallow: bool = False
) -> Path:
    """Save a diffusers pipeline of Stable Diffusion 1.5's layout with random weights, about 4 MB; returns `folder`.

    Key names and conversions to other formats are the same, only the widths are small. With `shallow` the UNet has a
    quarter of the layers, the VAE half of them: for laws that know no layer by its place.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=NATIVE_SIZE // 8,
            norm_num_groups=8,
            attention_head_dim=4,
            cross_attention_dim=16,
            **(SHALLOW_UNET if shallow else WHOLE_UNET),
        )
        vae = AutoencoderKL(
            sample_size=NATIVE_SIZE,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 16, 16),
            norm_num_groups=4,
            layers_per_block=1 if shallow else 2,
            latent_channels=4,
            scaling_factor=0.18215,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408,
                hidden_size=16,
                projection_dim=16,
                intermediate_size=32,
                num_attention_heads=2,
                num_hidden_layers=2,
                max_position_embeddings=77,
                bos_token_id=49406,
                eos_token_id=49407,
                pad_token_id=1,
            )
        )
    pipeline = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=clip_tokenizer(),
        unet=unet.eval(),
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            num_train_timesteps=1000,
            prediction_type=prediction_type,
            set_alpha_to_one=False,
            skip_prk_steps=True,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(str(folder), safe_serialization=True)
    return Path(folder)


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's own tokenizer, from the byte-pair merges that open_clip ships: 49408 tokens, 77 positions."""
    package = find_spec("open_clip")
    assert package is not None
    assert package.origin is not None
    text = gzip.decompress((Path(package.origin).parent / "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode()
    merges = [tuple(line.split()) for line in text.split("\n")[1 : 49152 - 256 - 2 + 1]]
    letters = sorted(ByteLevel.alphabet())  # by code point: CLIP's own order
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, model_max_length=77)


def draw_photos(folder: str | Path, count: int = 6, size: tuple[int, int] = (96, 80)) -> Path:
    """Draw `count` plainly different pictures (a head on a ground, JPEG and PNG by turns) into `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    width, height = size
    for i in range(count):
        picture = Image.new("RGB", size, (37 * i % 256, 91 * i % 256, 255 - 40 * i % 256))
        pen = ImageDraw.Draw(picture)
        left, top = width // 4 + 3 * i, height // 6 + 2 * i
        pen.ellipse((left, top, left + width // 3, top + height // 2), fill=(240 - 20 * i, 190, 150 + 10 * i))
        pen.rectangle((5 * i, height - 12, 5 * i + 20, height - 2), fill=(20, 60 + 30 * i, 90))
        suffix = "png" if i % 2 else "jpg"
        picture.save(folder / f"photo_{i}.{suffix}", quality=95)
    return folder


def build_clip(folder: str | Path, seed: int = 0) -> Path:
    """Save a small random CLIP in open_clip's `local-dir:` layout, about 3 MB; returns `folder`."""
    import json

    from open_clip.model import CLIP
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model_cfg = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    }
    preprocess_cfg = {
        "size": 32,
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIP(**model_cfg)
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg})
    )
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return folder


def build_controlnet(folder: str | Path, base: str | Path, seed: int = 0) -> Path:
    """Save a random ControlNet that fits the pipeline in `base` and changes its pictures; returns `folder`."""
    unet = UNet2DConditionModel.from_pretrained(str(base), subfolder="unet")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8, 8, 16))
        for name, parameter in controlnet.named_parameters():
            if not parameter.any():  # a fresh ControlNet starts from zeros and changes nothing
                torch.nn.init.normal_(parameter, std=0.3 if name.endswith("weight") else 0.01)
        with torch.no_grad():
            for parameter in controlnet.controlnet_cond_embedding.parameters():
                parameter.mul_(3)  # so that it looks at the condition more than at the noise
    controlnet.save_pretrained(str(folder))
    return Path(folder)


def build_peft_lora(folder: Path, base: str, lora_alpha: float = 6) -> Path:
    """Save a LoRA of rank 2 as peft does, with its alpha in the config beside it alone; returns the file."""
    from training.config import LoraConfig
    from training.lora_names import PEFT_CONFIG, PEFT_FILE
    from training.methods import first_lora

    folder.mkdir(parents=True)
    lora = first_lora(LoraConfig(rank=2), base).unet
    save_file(
        {f"base_model.model.{name}": tensor if "lora_A" in name else tensor + 0.5 for name, tensor in lora.items()},
        folder / PEFT_FILE,
    )
    (folder / PEFT_CONFIG).write_text(json.dumps({"r": 2, "lora_alpha": lora_alpha}))
    return folder / PEFT_FILE


def build_face_weights(path: str | Path, width: int = 128, seed: int = 0) -> Path:
    """Save random weights of InceptionResnetV1 with a head of `width`, in half precision (46 MB); returns `path`."""
    from facenet_pytorch import InceptionResnetV1

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = InceptionResnetV1()
        network.last_linear = torch.nn.Linear(1792, width, bias=False)
        network.last_bn = torch.nn.BatchNorm1d(width, eps=0.001)
    halves = {
        name: value.half() if value.is_floating_point() else value for name, value in network.state_dict().items()
    }
    save_file(halves, path)
    return Path(path)
