"""Laws of prompts without the rare token. `pytest tests/evaluation/test_rare_token.py`, a second."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.rare_token import without_rare_token


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("a photo of sks woman", "a photo of woman"),
        ("sks woman in a garden", "woman in a garden"),
        ("a photo of SKS", "a photo of"),
        ("a photo of woman, sks, smiling", "a photo of woman, smiling"),
        ("a photo of (sks) woman", "a photo of woman"),
        ("portrait of sks.", "portrait of."),
        ("sks sks woman", "woman"),
        ("asks, sksual and sks-like words", "asks, sksual and sks-like words"),
        ("no token ,  oddly  spaced", "no token ,  oddly  spaced"),
    ],
)
def test_the_rare_token_goes_as_a_whole_word(prompt: str, read: str) -> None:
    """The token's word is taken out with the space and punctuation it leaves; parts of other words stay."""
    assert without_rare_token(prompt, "sks") == read


def test_a_rare_token_of_several_words_goes_as_one() -> None:
    """Words that name the person only together are taken out only together."""
    assert without_rare_token("photo of olis  zwx man in zwx", "olis zwx") == "photo of man in zwx"
    assert without_rare_token("photo of c++ man", "c++") == "photo of man"


def test_a_prompt_of_nothing_but_the_token_is_refused() -> None:
    """CLIP cannot judge a picture by an empty text."""
    with pytest.raises(ValueError, match="nothing is left"):
        without_rare_token(" (sks), ", "sks")


@given(st.lists(st.sampled_from(["sks", "woman", ",", "a", "(", ")", "in", "SKS", "photo."]), min_size=1).map(" ".join))
def test_taking_the_token_out_twice_changes_nothing(prompt: str) -> None:
    """What CLIP reads never holds the token, and is the same taken out once or twice."""
    try:
        once = without_rare_token(prompt, "sks")
    except ValueError:
        return
    assert "sks" not in once.lower().split()
    assert without_rare_token(once, "sks") == once
