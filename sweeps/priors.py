"""Settings that others have published for one person and Stable Diffusion 1.5: where a search may begin.

One table for whoever writes a sweep file and for the search. A setting names what its source says of the method's
fields and nothing else; what a sweep file leaves to the search beside that is drawn as ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sweeps.space import Choices, MethodSpace, Range, Scalar, contains
from training.config import METHODS


@dataclass(frozen=True)
class PublishedSetting:
    """What one source trains with."""

    source: str
    method: str
    values: Mapping[str, Scalar]
    """Field -> value: the space holds all of them, or the setting is no part of it."""
    besides: Mapping[str, Scalar] = field(default_factory=dict)
    """Field -> value, taken where the space leaves the field open and holds it."""

    def held_by(self, space: MethodSpace) -> dict[str, Scalar] | None:
        """Field -> value, of the fields that the space leaves open; None where the space does not hold the setting."""
        if any(not _holds(self.method, space, name, value) for name, value in self.values.items()):
            return None
        wanted = {**self.besides, **self.values}
        return {
            name: wanted[name]
            for name, value in space.items()
            if name in wanted and isinstance(value, Choices | Range) and contains(value, wanted[name])
        }


PUBLISHED = (
    PublishedSetting("ai-toolkit's example configs", "lora", {"rank": 16, "learning_rate": 1e-4}),
    PublishedSetting(
        "Hugging Face's DreamBooth study, for faces",
        "dreambooth",
        {"learning_rate": 1e-6},
        {"with_prior_preservation": True, "train_text_encoder": True},
    ),
    PublishedSetting("train_dreambooth_lora.py's defaults", "lora", {"rank": 4, "learning_rate": 5e-4}),
    PublishedSetting(
        "the reference experiment (examples/homework.yaml)",
        "dreambooth",
        {"learning_rate": 2e-6},
        {"with_prior_preservation": True, "train_text_encoder": True},
    ),
    PublishedSetting(
        "EasyPhoto",
        "lora",
        {"rank": 128, "learning_rate": 1e-4},
        {"lora_alpha_ratio": 0.5, "train_text_encoder": True},
    ),
    PublishedSetting("train_dreambooth.py's defaults", "dreambooth", {"learning_rate": 5e-6}),
    PublishedSetting("the reference experiment (examples/homework.yaml)", "lora", {"rank": 4, "learning_rate": 1e-4}),
)
"""Both methods in turn, those that most people begin with first."""


def _holds(method: str, space: MethodSpace, name: str, wanted: Scalar) -> bool:
    value = space.get(name, METHODS[method].model_fields[name].default)
    return contains(value, wanted) if isinstance(value, Choices | Range) else value == wanted
