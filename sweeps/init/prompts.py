"""What pictures are asked for: places, clothes, styles and framings that the captions do not name."""

from __future__ import annotations

import re
from collections.abc import Sequence

from training.reading import TextReader

IDEAS: tuple[tuple[str, str], ...] = (
    ("a photo of {} riding a bicycle in the rain", "bicycle bike rain"),
    ("a photo of {} wearing a leather jacket, full body, in a garden", "leather garden"),
    ("a pencil drawing of {}", "pencil drawing sketch"),
    ("a close-up portrait of {}, studio lighting, plain background", "close-up closeup studio"),
    ("a photo of {} cooking in a kitchen", "kitchen cooking"),
    ("a watercolor painting of {} in a forest", "watercolor painting forest"),
    ("a photo of {} in medieval armor, in front of a castle", "armor castle"),
    ("a photo of {} hiking in the mountains, seen from afar", "hiking mountain mountains"),
    ("a photo of {} reading on a train", "train reading"),
    ("a photo of {} wearing a knitted sweater and a scarf", "sweater scarf"),
    ("a marble statue of {}", "statue marble"),
    ("a photo of {} on a stage, holding a microphone", "stage microphone"),
)
"""Texts, and words of a caption by which a photo shows that already. No two are of one kind in a row: a place, clothes,
a style, a framing. None is held back for the second stage (`sweeps/confirm.py`)."""


def prompts_for(who: str, captions: Sequence[str], number: int, reader: TextReader) -> list[str]:
    """So many prompts, each naming the person; those first that no caption names.

    Args:
        who: the rare token and the class word.
        captions: of the photos.
        number: at most as many as there are ideas.
        reader: of the prompts; what it would not read to its end is left out.
    """
    said = set(re.findall(r"[a-z-]+", " ".join(captions).lower()))
    unseen = [text for text, words in IDEAS if not said & set(words.split())]
    seen = [text for text, words in IDEAS if said & set(words.split())]
    prompts = [text.format(who) for text in [*unseen, *seen]]
    return [prompt for prompt in prompts if reader.refusal(prompt) is None][:number]
