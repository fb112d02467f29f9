"""What one fine-tune is made of: the subject's photos and one run's hyperparameters.

Field names and defaults follow diffusers' `train_dreambooth.py` and `train_dreambooth_lora.py`; every
deliberate difference is listed in `DIFFERENCES_FROM_DIFFUSERS` and held by a test.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from training.canonical import added_in
from training.paths import ConfigPath

MixedPrecision = Literal["no", "fp16", "bf16"]
Optimizer = Literal["adamw", "prodigy", "adafactor"]
Adapter = Literal["lora", "loha", "lokr"]
TargetModules = Literal["attention", "attention+ff", "all"]
TargetBlocks = Literal["all", "down", "mid", "up", "down+mid", "down+up", "mid+up"]
PriorFrom = Literal["class_images", "base_model"]
LrScheduler = Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]

HORIZON_FREE_SCHEDULES: frozenset[str] = frozenset({"constant", "constant_with_warmup"})
"""Schedules whose value at a step does not depend on `max_train_steps`: only there is a checkpoint at step s of a
longer run equal to the end of a run of s steps."""

_LEAST_PRODIGY_RATE = 0.1
"""Below which diffusers' advanced scripts warn that nothing will be learnt."""
_POLYNOMIAL_END = 1e-7
"""Where diffusers' polynomial schedule ends."""

DIFFERENCES_FROM_DIFFUSERS: dict[str, str] = {
    "seed": "0 instead of none: a trial that cannot be repeated cannot be compared",
    "max_train_steps": "800 instead of one epoch: a sweep compares runs of known length",
    "lr_warmup_steps": "0 instead of 500: upstream's default schedule, constant, ignores it",
    "center_crop": "always: around the face or the centre (subject.crop); random crops would defeat cached latents",
    "image_interpolation_mode": "lanczos for both methods, as in the LoRA script; the full script resizes bilinearly, "
    "which a photo that shrinks fourfold shows",
}
"""Flags whose default is another one there, or whose other values are not had here."""

DIFFERENCES_IN_BEHAVIOUR: dict[str, str] = {
    "train_batch_size": "batches run on over an epoch's end; upstream's last batch of an epoch is what is left of it",
    "gradient_accumulation_steps": "every step has all of its micro-steps; accelerate takes a step at each epoch's "
    "end, of however many batches there were, and divides its gradient by the full number all the same",
    "loss": "what is written down of a step is the mean of its micro-steps; upstream logs the last one's",
    "train_text_encoder": "one that is stored in half precision trains in float32; the full script refuses it",
    "mixed_precision": "adapters are float32 under bf16 too; upstream's are bf16, and hardly move at small rates",
    "snr_gamma": "beside prior preservation the photo's own weight counts; upstream's full script mixes the class "
    "picture's in, or fails where a batch has more than one",
}
"""What the same settings do otherwise than in diffusers' scripts (58eb52c), each for the better as far as we know."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SubjectConfig(_Section):
    """The person: photos, the words that name them, and how pictures are cut."""

    photos: ConfigPath
    """Folder of 5-50 jpg, png or webp pictures of one person; a `.txt` or `.caption` beside one is its caption."""
    instance_prompt: str = Field(min_length=1)
    """What a photo of the person is called, with the rare token: "a photo of sks woman"."""
    class_prompt: str | None = None
    """The same without the rare token: "a photo of a woman". Needed for prior preservation."""
    class_images: ConfigPath | None = Field(default=None, json_schema_extra=added_in("0.2.0"))
    """Folder of one's own pictures of the class, for prior preservation; what it lacks of `num_class_images` is drawn
    by the base model."""
    rare_token: str | None = None
    """The word(s) of `instance_prompt` that name the person. Default: those that `class_prompt` does not have, where it
    is certain which they are; without a class prompt a known placeholder such as `sks`."""
    resolution: int = Field(default=512, ge=8, multiple_of=8)
    """Side of the square training pictures in pixels."""
    crop: Literal["face", "center"] = "face"
    """`face`: a square around the face where the face encoder finds one, else the centre. `center`: the centre."""
    held_out_photos: int | None = Field(default=None, ge=0, json_schema_extra=added_in("0.2.0"))
    """Photos that are kept from training, for pictures to be compared with. Default: a quarter of ten photos or more,
    where `evaluation.face.references` names no others."""
    random_flip: bool = False
    """Train on mirrored pictures too, each with probability one half."""


class TrainConfig(_Section):
    """Hyperparameters that both methods share."""

    BOUND_TOGETHER: ClassVar[frozenset[str]] = frozenset(
        {
            *("lr_scheduler", "learning_rate", "lr_warmup_steps", "max_train_steps"),
            *("use_8bit_adam", "fused_adam", "channels_last"),
            *("optimizer", "text_encoder_learning_rate", "lora_alpha", "lora_alpha_ratio"),
            *("adapter", "lora_dropout", "use_rslora", "use_dora"),
        }
    )
    """Fields that a law between fields looks at; each law that holds at their extremes holds between them."""

    learning_rate: float = Field(gt=0, le=1)
    max_train_steps: int = Field(default=800, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**32)
    train_batch_size: int = Field(default=4, ge=1)
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    gradient_checkpointing: bool = False
    mixed_precision: MixedPrecision = "no"
    use_8bit_adam: bool = False
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    adam_weight_decay: float = Field(default=1e-2, ge=0)
    adam_epsilon: float = Field(default=1e-8, gt=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    lr_scheduler: LrScheduler = "constant"
    lr_warmup_steps: int = Field(default=0, ge=0)
    lr_num_cycles: int = Field(default=1, ge=1)
    lr_power: float = Field(default=1.0, gt=0)
    train_text_encoder: bool = False
    text_encoder_learning_rate: float | None = Field(default=None, gt=0, le=1)
    """Where the text encoder trains; default: `learning_rate`, the one rate that upstream has for both."""
    with_prior_preservation: bool = False
    prior_loss_weight: float = Field(default=1.0, ge=0)
    num_class_images: int = Field(default=100, ge=1)
    snr_gamma: float | None = Field(default=None, gt=0)
    fused_adam: bool = Field(default=False, json_schema_extra=added_in("0.2.0"))
    """AdamW in one kernel, rounded otherwise than diffusers' scripts do. A pack's AdamW is fused in any case."""
    channels_last: bool = Field(default=False, json_schema_extra=added_in("0.2.0"))
    """The UNet's convolutions with the channels innermost in memory while they train; files are as ever."""
    compile: bool = Field(default=False, json_schema_extra=added_in("0.2.0"))
    """The UNet as `torch.compile` makes it: minutes before the first step, then faster ones."""
    noise_offset: float = Field(default=0.0, ge=0, le=1, json_schema_extra=added_in("0.2.0"))
    """Standard deviation of what is added to all of a latent channel's noise, so that very dark and very bright
    pictures are learnt; 0.1 where it is used."""
    caption_dropout_rate: float = Field(default=0.0, ge=0, le=1, json_schema_extra=added_in("0.2.0"))
    """Probability that a photo is shown without its words."""
    shuffle_caption: bool = Field(default=False, json_schema_extra=added_in("0.2.0"))
    """Put the parts of a caption between commas into another order each time it is shown."""
    keep_tokens: int = Field(default=0, ge=0, json_schema_extra=added_in("0.2.0"))
    """Parts at a caption's beginning that `shuffle_caption` leaves where they are."""
    face_loss_weight: float = Field(default=1.0, gt=0, le=100, json_schema_extra=added_in("0.2.0"))
    """How much more the loss within the face's box counts than around it; a photo as a whole counts as ever."""
    stop_text_encoder_training: int | None = Field(default=None, ge=1, json_schema_extra=added_in("0.2.0"))
    """The last step in which the text encoder trains. Default: it trains to the end."""
    optimizer: Optimizer = Field(default="adamw", json_schema_extra=added_in("0.2.0"))
    """`prodigy` finds the rate by itself, times `learning_rate`, whose default is then 1; `adafactor` keeps less in
    memory."""
    prior_from: PriorFrom = Field(default="class_images", json_schema_extra=added_in("0.2.0"))
    """What prior preservation holds on to: pictures of the class, or, without any, what the untouched base model says
    of the photos under the class prompt."""
    allow_tf32: bool = Field(default=False, json_schema_extra=added_in("0.2.0"))
    """Matrix products in float32 may be rounded to 10 bits on GPUs that have TF32."""

    @model_validator(mode="before")
    @classmethod
    def _prodigys_rate_is_1_by_default(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping) and raw.get("optimizer") == "prodigy" and "learning_rate" not in raw:
            return {**raw, "learning_rate": 1.0}
        return raw

    @model_validator(mode="after")
    def _one_optimizer_takes_the_step(self) -> Self:
        if self.fused_adam and self.use_8bit_adam:
            raise ValueError("fused_adam: 8-bit AdamW has kernels of its own, so use_8bit_adam must be false, got true")
        return self

    @model_validator(mode="after")
    def _an_optimizer_has_its_own_settings(self) -> Self:
        if self.optimizer == "adamw":
            return self
        for name in ("use_8bit_adam", "fused_adam"):
            if getattr(self, name):
                raise ValueError(f"{name}: is AdamW's, so optimizer must be adamw, got {self.optimizer}")
        if self.optimizer == "prodigy":
            if self.text_encoder_learning_rate not in (None, self.learning_rate):
                raise ValueError(
                    "text_encoder_learning_rate: prodigy finds one rate for all that trains, so it must not be given, "
                    f"got {self.text_encoder_learning_rate:g}"
                )
            if self.learning_rate < _LEAST_PRODIGY_RATE:
                raise ValueError(
                    f"learning_rate: optimizer prodigy multiplies the rate that it finds by it, so it must be "
                    f"{_LEAST_PRODIGY_RATE} or more (1 as a rule), got {self.learning_rate:g}"
                )
        return self

    @model_validator(mode="after")
    def _polynomial_has_room_to_fall(self) -> Self:
        if self.lr_scheduler == "polynomial":
            if self.learning_rate <= _POLYNOMIAL_END:
                raise ValueError(
                    f"learning_rate: a polynomial schedule falls to {_POLYNOMIAL_END}, so it must start above that, "
                    f"got {self.learning_rate}"
                )
            if self.lr_warmup_steps >= self.max_train_steps:
                raise ValueError(
                    f"lr_warmup_steps: a polynomial schedule needs fewer than max_train_steps "
                    f"({self.max_train_steps}), got {self.lr_warmup_steps}"
                )
        return self


class LoraConfig(TrainConfig):
    """Low-rank adapters on the UNet's attention and, by `train_text_encoder`, the text encoder's."""

    method: Literal["lora"] = "lora"
    learning_rate: float = Field(default=5e-4, gt=0, le=1)
    rank: int = Field(default=4, ge=1)
    lora_alpha: float | None = Field(default=None, gt=0)
    """Scale of the update is `lora_alpha / rank`; default: the rank, as in diffusers."""
    lora_alpha_ratio: float | None = Field(default=None, gt=0, json_schema_extra=added_in("0.2.0"))
    """`lora_alpha` as a multiple of the rank, so that a search over ranks keeps the scale of the update."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: TargetModules = Field(default="attention", json_schema_extra=added_in("0.2.0"))
    """Layers of the UNet that have adapters: attention's; its feed-forward layers too; or all, convolutions too."""
    target_blocks: TargetBlocks = Field(default="all", json_schema_extra=added_in("0.2.0"))
    """Blocks of the UNet whose layers have adapters, on its way down, in its middle and on its way up."""
    use_rslora: bool = Field(default=False, json_schema_extra=added_in("0.2.0"))
    """The update's scale is `lora_alpha / sqrt(rank)`: Kalajdzievski 2023, section 3."""
    use_dora: bool = Field(default=False, json_schema_extra=added_in("0.2.0"))
    """Adapt direction and magnitude apart: Liu et al. 2024, equation 5."""
    adapter: Adapter = Field(default="lora", json_schema_extra=added_in("0.2.0"))
    """`loha` and `lokr` are products of Hadamard and Kronecker: Yeh et al. 2023, sections 3.2 and 3.3."""

    @model_validator(mode="after")
    def _one_alpha(self) -> Self:
        if self.lora_alpha is not None and self.lora_alpha_ratio is not None:
            raise ValueError(
                f"lora_alpha_ratio: is another way to say lora_alpha, so one of both must be left out, "
                f"got {self.lora_alpha:g} and {self.lora_alpha_ratio:g}"
            )
        return self

    @model_validator(mode="after")
    def _other_adapters_are_as_they_are(self) -> Self:
        if self.adapter != "lora":
            for name in ("lora_dropout", "use_rslora", "use_dora"):
                if getattr(self, name):
                    raise ValueError(
                        f"{name}: is a LoRA's, so adapter must be lora, got {self.adapter} with {getattr(self, name)}"
                    )
        return self

    @property
    def alpha(self) -> float:
        """`lora_alpha`, however it is given: the rank by default."""
        if self.lora_alpha_ratio is not None:
            return self.lora_alpha_ratio * self.rank
        return self.rank if self.lora_alpha is None else self.lora_alpha

    @property
    def scale(self) -> float:
        """What the adapters' product is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.use_rslora else self.rank)


class DreamBoothConfig(TrainConfig):
    """All weights of the UNet and, by `train_text_encoder`, of the text encoder."""

    method: Literal["dreambooth"] = "dreambooth"
    learning_rate: float = Field(default=5e-6, gt=0, le=1)

    @model_validator(mode="after")
    def _nobody_lays_out_weights_anew(self) -> Self:
        if self.channels_last and self.use_8bit_adam:
            raise ValueError(
                "channels_last: 8-bit AdamW brings all weights back to rows, so use_8bit_adam must be false, got true"
            )
        return self


MethodConfig = Annotated[LoraConfig | DreamBoothConfig, Field(discriminator="method")]
"""One trial's hyperparameters, told apart by `method`."""

METHODS: Mapping[str, type[LoraConfig] | type[DreamBoothConfig]] = {"lora": LoraConfig, "dreambooth": DreamBoothConfig}


def scoring_steps(at_steps: Iterable[int], max_train_steps: int) -> list[int]:
    """The steps of `at_steps` that a run reaches, in order, and its last step."""
    return sorted({step for step in at_steps if 0 < step < max_train_steps} | {max_train_steps})


PACKS_AGREE_ON = (
    "train_batch_size",
    "gradient_accumulation_steps",
    "mixed_precision",
    "train_text_encoder",
    "with_prior_preservation",
    "channels_last",
    "allow_tf32",
    "target_blocks",
)
"""What LoRA trainings of one pack have in common: the rows that each has of a pass, its precision, what trains, and how
the base model lies in memory."""


def packed_layers(config: MethodConfig) -> tuple[bool, TargetBlocks] | None:
    """Where a pack has a training's adapters: in the text encoder too or not, and in which blocks of the UNet.

    Pictures of checkpoints that have them in the same layers may be made in one pass; None: not in one with others. It
    is a matter of what the checkpoint is, and not of how it was trained: the layers of a pack are linear, and their
    adapters plain.
    """
    if not isinstance(config, LoraConfig) or config.adapter != "lora" or config.use_dora:
        return None
    if config.target_modules != "attention":
        return None
    return config.train_text_encoder, config.target_blocks


def is_packable(config: MethodConfig) -> bool:
    """May a training share its passes with others? Then so may its pictures.

    8-bit AdamW's blocks of weights would be other ones in a pack, and of what Prodigy and Adafactor take the norm. A
    pass would be compiled anew whenever a training comes or goes. A text encoder that stops and a base model that is
    asked for its own answers are no matter of all rows.
    """
    return (
        packed_layers(config) is not None
        and config.optimizer == "adamw"
        and not (config.use_8bit_adam or config.compile)
        and (config.stop_text_encoder_training is None or not config.train_text_encoder)
        and (config.prior_from == "class_images" or not config.with_prior_preservation)
    )


def pack_together(one: MethodConfig, other: MethodConfig) -> bool:
    """May two trainings share their passes?"""
    if not (is_packable(one) and is_packable(other)):  # what they agree on is a LoRA's
        return False
    return all(getattr(one, name) == getattr(other, name) for name in PACKS_AGREE_ON)
