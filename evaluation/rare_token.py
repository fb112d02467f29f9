"""The rare token, the word that names the person in a prompt, and prompts without it. Needs no torch."""

from __future__ import annotations

import re

from training.errors import UserError

RARE_WORD = "sks"
"""The word that stands for the person in most DreamBooth prompts."""


def without_rare_token(prompt: str, rare_token: str) -> str:
    """The prompt as CLIP should read it: `a photo of sks woman, smiling` -> `a photo of woman, smiling`.

    CLIP has never seen the person that the token names; to it the token is noise. The token's words are taken out
    wherever they stand as whole words together, in any case, with the spaces, brackets and commas that they leave
    behind. A prompt without the token comes back as it is.

    Raises:
        UserError: nothing is left of the prompt.
    """
    words = rare_token.split()
    if not words:
        return prompt
    token = r"(?<![\w-])" + r"\s+".join(re.escape(word) for word in words) + r"(?![\w-])"
    text, found = re.subn(token, "", prompt, flags=re.IGNORECASE)
    if not found:
        return prompt
    text = re.sub(r"\(\s*\)|\[\s*\]", "", text)
    text = re.sub(r"\s+(?=[,.;:!?)\]])", "", text)
    text = re.sub(r"(?<=[(\[])\s+", "", text)
    text = re.sub(r"([,;:])(?:\s*[,;:])+", r"\1", text)
    text = re.sub(r"\s+", " ", text).strip(" ,;:")
    if not re.search(r"\w", text):
        raise UserError(f"prompt {prompt!r}: nothing is left without the rare token {rare_token!r}")
    return text
