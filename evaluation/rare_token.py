"""The rare token, the word that names the person in a prompt: guessed, looked for, taken out. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator

from evaluation.clip_text import is_common_word
from training.errors import UserError

RARE_WORD = "sks"
"""The word that stands for the person in most DreamBooth prompts."""
KNOWN_TOKENS = frozenset({RARE_WORD, "ohwx", "zwx", "olis", "tok"})
"""Placeholders of the DreamBooth paper, of diffusers and of what people write; `<...>` and `[V]` are others."""

_WORD = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]|[\w*+#$@~]+(?:[-'\u2019][\w*+#$@~]+)*")
"""A word without the punctuation around it, but with brackets that make it a placeholder."""

_SENTENCE = "a an the of in on at with and by from for to as is my his her their this that one very"
_PICTURE = (
    "photo photograph photography picture pic image portrait selfie headshot shot snapshot close-up closeup close up "
    "painting drawing rendering render art style illustration sketch depiction cropped good bad best quality"
)
_CLASS = (
    "woman women man men person people human girl girls boy boys lady gentleman guy dude male female child children "
    "kid kids baby toddler teen teenager adult character celebrity actor actress model subject individual somebody "
    "someone dog puppy cat kitten animal pet toy face head body hair eyes"
)
_LOOKS = "young old smiling smile laughing happy beautiful handsome pretty cute looking wearing standing sitting"
_ORDINARY = frozenset(f"{_SENTENCE} {_PICTURE} {_CLASS} {_LOOKS}".split())
"""Words that name nobody."""


def guess_rare_token(instance_prompt: str, class_prompt: str | None) -> str:
    """The words of the instance prompt that name the person, as they are written there.

    They are words that stand together, that the class prompt does not have in any case and that no sentence about
    anybody has. A known placeholder among them decides; else there must be one candidate, and CLIP must not know it.

    Raises:
        UserError: it is not certain which they are; the message names the candidates.
    """
    class_words = {_folded(match.group()) for match in _WORD.finditer(class_prompt or "")}
    candidates = list(_candidates(instance_prompt, class_words))
    known = [words for words in candidates if any(_is_placeholder(word) for word in words.split())]
    if len(known) == 1:
        return known[0]
    unknown = [words for words in candidates if not all(is_common_word(word) for word in words.split())]
    if class_prompt is not None and not known and len(candidates) == len(unknown) == 1:
        return unknown[0]
    raise UserError(
        f"subject.rare_token: must be given: no word of instance_prompt {instance_prompt!r} is for certain the one "
        f"that names the person{_perhaps(known or candidates)}"
    )


def has_rare_token(prompt: str, rare_token: str) -> bool:
    """Does the prompt name the person?"""
    return bool(rare_token.split()) and _pattern(rare_token).search(prompt) is not None


def without_rare_token(prompt: str, rare_token: str) -> str:
    """The prompt as CLIP should read it: `a photo of sks woman, smiling` -> `a photo of woman, smiling`.

    CLIP has never seen the person that the token names; to it the token is noise. The token's words are taken out
    wherever they stand as whole words together, in any case, with the spaces, brackets and commas that they leave
    behind. A prompt without the token comes back as it is.

    Raises:
        UserError: nothing is left of the prompt.
    """
    if not has_rare_token(prompt, rare_token):
        return prompt
    text = _pattern(rare_token).sub("", prompt)
    text = re.sub(r"\(\s*\)|\[\s*\]", "", text)
    text = re.sub(r"\s+(?=[,.;:!?)\]])", "", text)
    text = re.sub(r"(?<=[(\[])\s+", "", text)
    text = re.sub(r"([,;:])(?:\s*[,;:])+", r"\1", text)
    text = re.sub(r"\s+", " ", text).strip(" ,;:")
    if not re.search(r"\w", text):
        raise UserError(f"prompt {prompt!r}: nothing is left without the rare token {rare_token!r}")
    return text


def _pattern(rare_token: str) -> re.Pattern[str]:
    words = r"\s+".join(re.escape(word) for word in rare_token.split())
    return re.compile(rf"(?<![\w-]){words}(?![\w-])", flags=re.IGNORECASE)


def _candidates(instance_prompt: str, class_words: set[str]) -> Iterator[str]:
    """Longest runs of words that could be a name, with nothing but space between them."""
    run: list[str] = []
    end = 0
    for match in _WORD.finditer(instance_prompt):
        word = re.sub(r"['\u2019]s$", "", match.group(), flags=re.IGNORECASE)
        belongs = _folded(word) not in class_words and (_is_placeholder(word) or _folded(word) not in _ORDINARY)
        if run and not (belongs and instance_prompt[end : match.start()].isspace()):
            yield " ".join(run)
            run = []
        run += [word] if belongs else []
        end = match.start() + len(word)
    if run:
        yield " ".join(run)


def _folded(word: str) -> str:
    return re.sub(r"['\u2019]s$", "", word.casefold())


def _is_placeholder(word: str) -> bool:
    return word.casefold() in KNOWN_TOKENS or word[0] in "<["


def _perhaps(candidates: list[str]) -> str:
    return f" (perhaps {' or '.join(map(repr, candidates))})" if candidates else ""
