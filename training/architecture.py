"""Stable Diffusion 1's modules by their configs: which weights, of which shapes, they are made of. Needs no torch.

A weight that a file lacks is drawn at random by diffusers and transformers, with no more than a warning; so what a
module needs has to be known before. Widths and depths are the config's, kinds of blocks are Stable Diffusion 1's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

Shapes = dict[str, tuple[int, ...]]
"""Name of a weight -> its shape."""
Widths = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Activation = Literal["silu", "swish", "mish", "gelu", "relu"]
Named = tuple[str, tuple[int, ...]]

ATTENTION_BLOCKS = {"CrossAttnDownBlock2D": True, "DownBlock2D": False, "CrossAttnUpBlock2D": True, "UpBlock2D": False}

SCHEDULERS = frozenset(
    {
        "DDIMScheduler",
        "DDPMScheduler",
        "DEISMultistepScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSDEScheduler",
        "DPMSolverSinglestepScheduler",
        "EDMEulerScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "LCMScheduler",
        "LMSDiscreteScheduler",
        "PNDMScheduler",
        "TCDScheduler",
        "UniPCMultistepScheduler",
    }
)
"""The samplers of diffusers that share Stable Diffusion's noise levels."""


class _Config(BaseModel):
    """Fields that are not named here change no shape."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class _DiffusersConfig(_Config):
    """What would keep diffusers from making a module of it."""

    class_name: str = Field(alias="_class_name", default="")
    diffusers_version: Annotated[str, Field(pattern=r"^\d+(\.\d+)*(\.?dev\d+|\.?rc\d+)?$")] = Field(
        alias="_diffusers_version", default="0.0.0"
    )
    quantization_config: None = None

    dtype: Any = None

    @field_validator("dtype")
    @classmethod
    def _dtype_is_absent(cls, dtype: object) -> None:
        raise ValueError(f"must not be there, its model takes none, got {dtype!r}")


class UNetConfig(_DiffusersConfig):
    """`unet/config.json`; defaults are those of diffusers' UNet2DConditionModel."""

    in_channels: PositiveInt = 4
    out_channels: PositiveInt = 4
    sample_size: PositiveInt
    """Side of its latents, from which its native picture size follows; diffusers has no default."""
    block_out_channels: Widths = (320, 640, 1280, 1280)
    down_block_types: tuple[Literal["CrossAttnDownBlock2D", "DownBlock2D"], ...] = (
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    )
    mid_block_type: Literal["UNetMidBlock2DCrossAttn"] = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[Literal["CrossAttnUpBlock2D", "UpBlock2D"], ...] = (
        "UpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
        "CrossAttnUpBlock2D",
    )
    layers_per_block: PositiveInt = 2
    cross_attention_dim: PositiveInt = 1280
    attention_head_dim: PositiveInt | tuple[PositiveInt, ...] = 8
    norm_num_groups: PositiveInt = 32
    use_linear_projection: bool = False
    transformer_layers_per_block: Literal[1] = 1
    only_cross_attention: Literal[False] = False
    dual_cross_attention: Literal[False] = False
    class_embed_type: None = None
    num_class_embeds: None = None
    addition_embed_type: None = None
    class_embeddings_concat: Literal[False] = False
    reverse_transformer_layers_per_block: None = None
    mid_block_only_cross_attention: Literal[False] | None = None
    cross_attention_norm: None = None
    encoder_hid_dim: None = None
    encoder_hid_dim_type: None = None
    time_cond_proj_dim: None = None
    time_embedding_dim: None = None
    time_embedding_act_fn: None = None
    timestep_post_act: None = None
    num_attention_heads: None = None
    time_embedding_type: Literal["positional"] = "positional"
    resnet_time_scale_shift: Literal["default"] = "default"
    attention_type: Literal["default"] = "default"
    conv_in_kernel: Literal[3] = 3
    conv_out_kernel: Literal[3] = 3
    act_fn: Activation = "silu"
    norm_eps: Positive = 1e-5
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    downsample_padding: Literal[1] = 1
    mid_block_scale_factor: Positive = 1
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    center_input_sample: bool = False
    upcast_attention: bool | None = False

    @model_validator(mode="after")
    def _levels_agree(self) -> Self:
        levels = len(self.block_out_channels)
        if not levels == len(self.down_block_types) == len(self.up_block_types):
            raise ValueError("block_out_channels, down_block_types and up_block_types must be of one length")
        _check_groups(self.block_out_channels, self.norm_num_groups)
        heads = self.attention_head_dim
        each = (heads,) * levels if isinstance(heads, int) else heads
        if len(each) != levels or any(
            width % number for width, number in zip(self.block_out_channels, each, strict=True)
        ):
            raise ValueError(f"attention_head_dim {heads} must divide block_out_channels {self.block_out_channels}")
        return self


class VaeConfig(_DiffusersConfig):
    """`vae/config.json`; defaults are those of diffusers' AutoencoderKL."""

    in_channels: Literal[3] = 3
    out_channels: Literal[3] = 3
    latent_channels: PositiveInt = 4
    block_out_channels: Widths = (64,)
    down_block_types: tuple[Literal["DownEncoderBlock2D"], ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[Literal["UpDecoderBlock2D"], ...] = ("UpDecoderBlock2D",)
    layers_per_block: PositiveInt = 1
    norm_num_groups: PositiveInt = 32
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    act_fn: Activation = "silu"
    scaling_factor: Positive = 0.18215
    sample_size: PositiveInt = 32

    @model_validator(mode="after")
    def _levels_agree(self) -> Self:
        if not len(self.block_out_channels) == len(self.down_block_types) == len(self.up_block_types):
            raise ValueError("block_out_channels, down_block_types and up_block_types must be of one length")
        _check_groups(self.block_out_channels, self.norm_num_groups)
        return self


class TextEncoderConfig(_Config):
    """`text_encoder/config.json`; defaults are those of transformers' CLIPTextConfig."""

    vocab_size: PositiveInt = 49408
    hidden_size: PositiveInt = 512
    intermediate_size: PositiveInt = 2048
    num_hidden_layers: PositiveInt = 12
    num_attention_heads: PositiveInt = 8
    max_position_embeddings: PositiveInt = 77
    bos_token_id: int | None = 49406
    eos_token_id: int | tuple[int, ...] | None = 49407
    pad_token_id: int | None = 1
    projection_dim: int | None = 512
    initializer_range: Annotated[float, Field(ge=0)] = 0.02
    dtype: Literal["float16", "bfloat16", "float32", "float64"] | None = None
    torch_dtype: Literal["float16", "bfloat16", "float32", "float64"] | None = None
    quantization_config: None = None
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    layer_norm_eps: Positive = 1e-5
    attention_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} must divide hidden_size {self.hidden_size}"
            )
        return self


class SchedulerConfig(_Config):
    """`scheduler/scheduler_config.json`: what training reads of it."""

    num_train_timesteps: PositiveInt = 1000
    beta_start: Annotated[float, Field(gt=0, lt=1)] = 0.0001
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"


def _check_groups(widths: tuple[int, ...], groups: int) -> None:
    if any(width % groups for width in widths):
        raise ValueError(f"norm_num_groups {groups} must divide block_out_channels {widths}")


STABLE_DIFFUSION_15_UNET = UNetConfig(sample_size=64, cross_attention_dim=768)
STABLE_DIFFUSION_15_VAE = VaeConfig(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=2,
)
STABLE_DIFFUSION_15_TEXT = TextEncoderConfig(
    hidden_size=768, intermediate_size=3072, num_attention_heads=12, bos_token_id=0, eos_token_id=2
)


def unet_shapes(config: UNetConfig) -> Shapes:
    """The weights of the UNet under diffusers' names."""
    return dict(_unet(config))


def vae_shapes(config: VaeConfig) -> Shapes:
    """The weights of the VAE under diffusers' names."""
    return dict(_vae(config))


def text_encoder_shapes(config: TextEncoderConfig) -> Shapes:
    """The weights of CLIP's text encoder as transformers 5 names them, without `text_model.`."""
    return dict(_text_encoder(config))


def _unet(config: UNetConfig) -> Iterator[Named]:
    widths, layers = config.block_out_channels, config.layers_per_block
    time, last = 4 * widths[0], len(widths) - 1
    yield from _conv("conv_in", config.in_channels, widths[0])
    yield from _linear("time_embedding.linear_1", widths[0], time)
    yield from _linear("time_embedding.linear_2", time, time)
    skips, width = [widths[0]], widths[0]
    for i, out in enumerate(widths):
        for j in range(layers):
            yield from _resnet(f"down_blocks.{i}.resnets.{j}", width if j == 0 else out, out, time)
            if ATTENTION_BLOCKS[config.down_block_types[i]]:
                yield from _transformer(f"down_blocks.{i}.attentions.{j}", out, config)
            skips.append(out)
        if i < last:
            yield from _conv(f"down_blocks.{i}.downsamplers.0.conv", out, out)
            skips.append(out)
        width = out
    yield from _resnet("mid_block.resnets.0", width, width, time)
    yield from _transformer("mid_block.attentions.0", width, config)
    yield from _resnet("mid_block.resnets.1", width, width, time)
    for i, out in enumerate(reversed(widths)):
        for j in range(layers + 1):
            yield from _resnet(f"up_blocks.{i}.resnets.{j}", width + skips.pop(), out, time)
            if ATTENTION_BLOCKS[config.up_block_types[i]]:
                yield from _transformer(f"up_blocks.{i}.attentions.{j}", out, config)
            width = out
        if i < last:
            yield from _conv(f"up_blocks.{i}.upsamplers.0.conv", out, out)
    yield from _norm("conv_norm_out", width)
    yield from _conv("conv_out", width, config.out_channels)


def _transformer(name: str, width: int, config: UNetConfig) -> Iterator[Named]:
    project = _linear if config.use_linear_projection else _point_conv
    block = f"{name}.transformer_blocks.0"
    yield from _norm(f"{name}.norm", width)
    yield from project(f"{name}.proj_in", width, width)
    for attention, context in (("attn1", width), ("attn2", config.cross_attention_dim)):
        yield f"{block}.{attention}.to_q.weight", (width, width)
        yield f"{block}.{attention}.to_k.weight", (width, context)
        yield f"{block}.{attention}.to_v.weight", (width, context)
        yield from _linear(f"{block}.{attention}.to_out.0", width, width)
    yield from _linear(f"{block}.ff.net.0.proj", width, 8 * width)
    yield from _linear(f"{block}.ff.net.2", 4 * width, width)
    for number in (1, 2, 3):
        yield from _norm(f"{block}.norm{number}", width)
    yield from project(f"{name}.proj_out", width, width)


def _vae(config: VaeConfig) -> Iterator[Named]:
    widths, latents, last = config.block_out_channels, config.latent_channels, len(config.block_out_channels) - 1
    yield from _conv("encoder.conv_in", config.in_channels, widths[0])
    width = widths[0]
    for i, out in enumerate(widths):
        for j in range(config.layers_per_block):
            yield from _resnet(f"encoder.down_blocks.{i}.resnets.{j}", width if j == 0 else out, out)
        if i < last:
            yield from _conv(f"encoder.down_blocks.{i}.downsamplers.0.conv", out, out)
        width = out
    yield from _vae_middle("encoder", width, config)
    yield from _norm("encoder.conv_norm_out", width)
    yield from _conv("encoder.conv_out", width, 2 * latents)
    yield from _conv("decoder.conv_in", latents, width)
    yield from _vae_middle("decoder", width, config)
    for i, out in enumerate(reversed(widths)):
        for j in range(config.layers_per_block + 1):
            yield from _resnet(f"decoder.up_blocks.{i}.resnets.{j}", width if j == 0 else out, out)
        if i < last:
            yield from _conv(f"decoder.up_blocks.{i}.upsamplers.0.conv", out, out)
        width = out
    yield from _norm("decoder.conv_norm_out", width)
    yield from _conv("decoder.conv_out", width, config.out_channels)
    if config.use_quant_conv:
        yield from _point_conv("quant_conv", 2 * latents, 2 * latents)
    if config.use_post_quant_conv:
        yield from _point_conv("post_quant_conv", latents, latents)


def _vae_middle(side: str, width: int, config: VaeConfig) -> Iterator[Named]:
    yield from _resnet(f"{side}.mid_block.resnets.0", width, width)
    if config.mid_block_add_attention:
        yield from _norm(f"{side}.mid_block.attentions.0.group_norm", width)
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            yield from _linear(f"{side}.mid_block.attentions.0.{part}", width, width)
    yield from _resnet(f"{side}.mid_block.resnets.1", width, width)


def _text_encoder(config: TextEncoderConfig) -> Iterator[Named]:
    width = config.hidden_size
    yield "embeddings.token_embedding.weight", (config.vocab_size, width)
    yield "embeddings.position_embedding.weight", (config.max_position_embeddings, width)
    for i in range(config.num_hidden_layers):
        layer = f"encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"{layer}.self_attn.{part}", width, width)
        yield from _norm(f"{layer}.layer_norm1", width)
        yield from _linear(f"{layer}.mlp.fc1", width, config.intermediate_size)
        yield from _linear(f"{layer}.mlp.fc2", config.intermediate_size, width)
        yield from _norm(f"{layer}.layer_norm2", width)
    yield from _norm("final_layer_norm", width)


def _resnet(name: str, width: int, out: int, time: int | None = None) -> Iterator[Named]:
    yield from _norm(f"{name}.norm1", width)
    yield from _conv(f"{name}.conv1", width, out)
    if time is not None:
        yield from _linear(f"{name}.time_emb_proj", time, out)
    yield from _norm(f"{name}.norm2", out)
    yield from _conv(f"{name}.conv2", out, out)
    if width != out:
        yield from _point_conv(f"{name}.conv_shortcut", width, out)


def _conv(name: str, width: int, out: int) -> Iterator[Named]:
    yield f"{name}.weight", (out, width, 3, 3)
    yield f"{name}.bias", (out,)


def _point_conv(name: str, width: int, out: int) -> Iterator[Named]:
    yield f"{name}.weight", (out, width, 1, 1)
    yield f"{name}.bias", (out,)


def _linear(name: str, width: int, out: int) -> Iterator[Named]:
    yield f"{name}.weight", (out, width)
    yield f"{name}.bias", (out,)


def _norm(name: str, width: int) -> Iterator[Named]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


# --- the original names of a single file --------------------------------------------------------------------------

UNET_PREFIX, VAE_PREFIX, TEXT_PREFIX = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."

_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
UNET_RESNET_NAMES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION_NAMES = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_UNET_BLOCK = re.compile(r"(?P<side>down|up)_blocks\.(?P<i>\d+)\.(?P<kind>\w+)\.(?P<j>\d+)\.(?P<rest>.*)")


def single_file_shapes(unet: UNetConfig, vae: VaeConfig, text_encoder: TextEncoderConfig) -> dict[str, Shapes]:
    """Part (`unet`, `vae`, `text_encoder`) -> its weights under the original names of Stable Diffusion 1."""
    return {
        "unet": {UNET_PREFIX + _original_unet_name(name, unet): shape for name, shape in _unet(unet)},
        "vae": {VAE_PREFIX + _original_vae_name(name, vae): shape for name, shape in _vae(vae)},
        "text_encoder": {f"{TEXT_PREFIX}text_model.{name}": shape for name, shape in _text_encoder(text_encoder)},
    }


def _original_unet_name(name: str, config: UNetConfig) -> str:
    block = _UNET_BLOCK.fullmatch(name)
    if block is None:
        end = next(end for end in _UNET_ENDS if name.startswith(f"{end}."))
        rest = name.removeprefix(f"{end}.")
        return f"{_UNET_ENDS[end]}.{_inner(rest, UNET_RESNET_NAMES) if 'resnets' in end else rest}"
    i, j, kind, rest = int(block["i"]), int(block["j"]), block["kind"], block["rest"]
    rest = _inner(rest, UNET_RESNET_NAMES) if kind == "resnets" else rest
    place = 0 if kind == "resnets" else 1
    if block["side"] == "down":  # the stem, then each resnet with its attention, then the downsampling
        first = 1 + i * (config.layers_per_block + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + config.layers_per_block}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{first + j}.{place}.{rest}"
    first = i * (config.layers_per_block + 1)
    if kind == "upsamplers":  # part of the last resnet's block, behind its attention where it has one
        after = 2 if ATTENTION_BLOCKS[config.up_block_types[i]] else 1
        return f"output_blocks.{first + config.layers_per_block}.{after}.{rest}"
    return f"output_blocks.{first + j}.{place}.{rest}"


def _original_vae_name(name: str, config: VaeConfig) -> str:
    last = len(config.block_out_channels) - 1
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{last - int(m[1])}.block.{m[2]}", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    before, middle, rest = name.partition("mid_block.attentions.0.")
    if middle:
        return f"{before}mid.attn_1.{_inner(rest, VAE_ATTENTION_NAMES)}"
    return name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")


def _inner(rest: str, names: Mapping[str, str]) -> str:
    part, _, last = rest.rpartition(".")
    return f"{names[part]}.{last}"
