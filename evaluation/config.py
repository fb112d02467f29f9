"""What a checkpoint is asked for: prompts, seeds and sampler, the two judges, and the ControlNet renders."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from training.canonical import added_in
from training.paths import ConfigPath, NameOrPath, resolve

LOCAL_DIR = "local-dir:"
"""open_clip's prefix of a model that lies in a folder."""
HF_HUB = "hf-hub:"
"""open_clip's prefix of a model that lies in a repository of the hub."""


def _resolve_local_dir(model: str, info: ValidationInfo) -> str:
    if not model.startswith(LOCAL_DIR):
        return model
    return f"{LOCAL_DIR}{resolve(model.removeprefix(LOCAL_DIR), info)}"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FaceConfig(_Section):
    """The judge of likeness."""

    encoder: NameOrPath = "vggface2"
    """`vggface2`, `casia-webface` or `dlib`, or a path: a weights file of `InceptionResnetV1`, or an encoder folder."""
    references: ConfigPath | None = None
    """Folder of photos to compare with; default: the subject's own. Photos that no trial learns from judge stricter."""


class ClipConfig(_Section):
    """The judge of prompt alignment: an open_clip model and its weights."""

    model: Annotated[str, AfterValidator(_resolve_local_dir)] = "ViT-B-32"
    """A model name of open_clip, or `local-dir:<folder>` in open_clip's own layout."""
    pretrained: NameOrPath | None = "laion2b_s34b_b79k"
    """A tag of that model or a path to its weights; not given for a `local-dir:` model, which has its own."""


class SecondOpinionConfig(_Section):
    """Judges that have no part in the search: they score the finalists' trainings, and are named where they disagree.

    Whatever selects by one encoder's score favours what that encoder likes.
    """

    face: FaceConfig | None = None
    """Another encoder; its `references` are not asked: pictures are compared with the same photos."""
    clip: ClipConfig | None = None


class ScreeningConfig(_Section):
    """Scoring in two tiers: every checkpoint by a few pictures, and only those that could still win by all of them."""

    images_per_prompt: int = Field(ge=1)
    """The first so many of each prompt: those that a full score has, too."""
    keep: float = Field(default=0.25, gt=0, lt=1)
    """The part of all checkpoints, best first by the champion's rule, that is scored in full when trials have ended."""


class EvaluationConfig(_Section):
    """The pictures every checkpoint makes and how they are scored; the same for all trials of a sweep."""

    prompts: list[str] = Field(min_length=1)
    prompts_without_token: Literal["refuse", "allow"] = Field(default="refuse", json_schema_extra=added_in("0.2.0"))
    """`allow`: some prompts are about the class and not the person. Their pictures count all the same."""
    negative_prompt: str = ""
    images_per_prompt: int = Field(default=4, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Picture i of every prompt starts from the noise of seed `seed + i`, whatever the trial."""
    at_steps: list[int] = Field(min_length=1)
    """Training steps at which a trial is scored; later ones than its last step fall away, the last is added."""
    scheduler: Literal["ddim", "dpmsolver++"] = "dpmsolver++"
    num_inference_steps: int = Field(default=25, ge=1)
    guidance_scale: float = Field(default=7.5, ge=0)
    width: int | None = Field(default=None, ge=8, multiple_of=8)
    """Pixels; default: the base model's own size."""
    height: int | None = Field(default=None, ge=8, multiple_of=8)
    batch_size: int = Field(default=4, ge=1)
    """Pictures made at once: memory, not results."""
    screening: ScreeningConfig | None = Field(default=None, json_schema_extra=added_in("0.2.0"))
    """Default: every checkpoint is scored by all pictures."""
    face: FaceConfig = FaceConfig()
    clip: ClipConfig = ClipConfig()
    second_opinion: SecondOpinionConfig | None = Field(default=None, json_schema_extra=added_in("0.2.0"))

    @model_validator(mode="after")
    def _screening_is_by_fewer(self) -> Self:
        if self.screening is not None and self.screening.images_per_prompt >= self.images_per_prompt:
            raise ValueError(
                f"screening.images_per_prompt: must be less than images_per_prompt ({self.images_per_prompt}), got "
                f"{self.screening.images_per_prompt}"
            )
        return self

    @property
    def cells(self) -> list[tuple[int, int]]:
        """Prompt index and noise seed of every picture, prompt by prompt."""
        seeds = [self.seed + i for i in range(self.images_per_prompt)]
        return [(prompt_index, seed) for prompt_index in range(len(self.prompts)) for seed in seeds]

    @property
    def num_images(self) -> int:
        """Pictures of a full score."""
        return len(self.prompts) * self.images_per_prompt

    @property
    def first_look(self) -> EvaluationConfig:
        """The pictures that every checkpoint is scored by; all of them where nothing is screened."""
        if self.screening is None:
            return self
        return self.model_copy(update={"images_per_prompt": self.screening.images_per_prompt, "screening": None})

    def beyond(self, images_per_prompt: int) -> EvaluationConfig:
        """The pictures that are still to be drawn where so many of each prompt are there: fewer than all."""
        missing = {
            "seed": self.seed + images_per_prompt,
            "images_per_prompt": self.images_per_prompt - images_per_prompt,
        }
        return self.model_copy(update={**missing, "screening": None})


SEEDS_BETWEEN_PROMPTS = 1000
"""More than anybody asks of pictures of one prompt."""


class ApartEvaluationConfig(EvaluationConfig):
    """The same, with noise that no two prompts share: picture i of prompt p starts from seed `seed + 1000 p + i`.

    A noise that all prompts share moves them together, so that a dozen prompts are not a dozen draws (docs/log.md).
    """

    @property
    def cells(self) -> list[tuple[int, int]]:
        """Prompt index and noise seed of every picture, prompt by prompt."""
        return [
            (prompt_index, self.seed + SEEDS_BETWEEN_PROMPTS * prompt_index + i)
            for prompt_index in range(len(self.prompts))
            for i in range(self.images_per_prompt)
        ]


class RenderConfig(_Section):
    """ControlNet renders of the best trials: one picture a reference."""

    references: list[ConfigPath] = Field(default_factory=list)
    controlnet: NameOrPath = "lllyasviel/sd-controlnet-canny"
    """Hub id or local diffusers folder."""
    detector: str = "canny"
    """`canny`, or another detector of controlnet-aux by its name."""
    low_threshold: int = Field(default=100, ge=0, le=255)
    high_threshold: int = Field(default=200, ge=0, le=255)
    prompt: str | None = None
    """Default: the sweep's instance prompt."""
    negative_prompt: str = "monochrome, lowres, bad anatomy, worst quality, low quality"
    num_inference_steps: int = Field(default=35, ge=1)
    guidance_scale: float = Field(default=9.0, ge=0)
    controlnet_conditioning_scale: float = Field(default=1.0, ge=0)
    seed: int = Field(default=20240410, ge=0, lt=2**32)
    resolution: int = Field(default=512, ge=64, multiple_of=8)
    """Longer side of a render in pixels; the other follows the reference's aspect, down to a multiple of 8."""
    top: int = Field(default=3, ge=1)
    """How many of the best trials are rendered."""
