"""What a text encoder reads of a text: all of it, or without a word the first tokens. Ground: no torch, no models.

Pipeline and CLIP alike cut a text that is longer than their context, in silence: two prompts can become one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TextReader:
    """A text encoder as far as the length of what it reads goes."""

    name: str
    """What it is called in messages."""
    limit: int
    """Tokens that it reads, those of begin and end counted."""
    reads_whole: Callable[[str], bool]
    """Does the text fit?"""

    def lost(self, text: str) -> str:
        """The words at the end of the text that would be cut off; empty where it fits."""
        if self.reads_whole(text):
            return ""
        words = text.split()
        num_read = bisect_right(range(1, len(words) + 1), False, key=lambda n: not self._fits(words[:n]))
        return " ".join(words[num_read:])

    def refusal(self, text: str) -> str | None:
        """Why the text cannot be read whole, in words; None where it can."""
        lost = self.lost(text)
        return f"{self.name} reads {self.limit} tokens and would not read {lost!r}" if lost else None

    def _fits(self, words: Sequence[str]) -> bool:
        return self.reads_whole(" ".join(words))


def clip_bpe(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> Any:
    """CLIP's byte-pair encoding, as transformers' `CLIPTokenizer` builds it, without transformers.

    Args:
        vocabulary: text of a token -> its number.
        merges: pairs of tokens, the first learnt first.

    Returns:
        A `tokenizers.Tokenizer` that adds no tokens of begin and end.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(
        models.BPE(
            vocab=dict(vocabulary),
            merges=list(merges),
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            unk_token="<|endoftext|>",  # noqa: S106 -- no password
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer
