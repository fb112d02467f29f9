"""Laws of prompts without the rare token. `pytest tests/evaluation/test_rare_token.py`, a second."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.rare_token import guess_rare_token, has_rare_token, without_rare_token


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


# --- the guess


@pytest.mark.parametrize(
    ("instance_prompt", "class_prompt", "token"),
    [
        ("a photo of sks woman", "a photo of a woman", "sks"),
        ("A photo of sks woman", "a photo of a woman", "sks"),
        ("a photo of sks woman, smiling", "a photo of a woman", "sks"),
        ("a photo of sks woman face", "a photo of a woman", "sks"),
        ("a photo of sks woman face", "a photo of woman face", "sks"),
        ("photo of sks person", "person", "sks"),
        ("photo of sks person", "a picture of somebody", "sks"),
        ("a photo of SKS woman", "a photo of a woman", "SKS"),
        ("portrait of (sks:1.2) woman.", "a woman", "sks"),
        ("sks's face, portrait", "a face", "sks"),
        ("a photo of ohwx ada", "a photo of a woman", "ohwx ada"),
        ("a photo of sks woman holding a qwop", "a photo of a woman", "sks"),
        ("a photo of zkz woman", "a photo of a woman", "zkz"),
        ("A Photo of zkz Woman", "a photo of a woman", "zkz"),
        ("photo of zkz person", "person", "zkz"),
        ("a photo of <ada-1> woman", "a woman", "<ada-1>"),
        ("a photo of [V] woman", "a woman", "[V]"),
        ("a photo of sks woman", None, "sks"),
        ("ohwx, close-up", None, "ohwx"),
    ],
)
def test_the_token_is_found_in_ordinary_sentences(instance_prompt: str, class_prompt: str | None, token: str) -> None:
    """Other case, punctuation, a class prompt in other words or of one word, a class noun more than it has."""
    assert guess_rare_token(instance_prompt, class_prompt) == token
    assert has_rare_token(instance_prompt, token)


@pytest.mark.parametrize(
    ("instance_prompt", "class_prompt", "candidates"),
    [
        ("a photo of zkz woman, qwop", "a photo of a woman", "perhaps 'zkz' or 'qwop'"),
        ("a photo of sks woman with ohwx man", "a photo of a woman", "perhaps 'sks' or 'ohwx'"),
        ("a photo of john man", "a photo of a man", "perhaps 'john'"),
        ("a photo of zkz woman", None, "perhaps 'zkz'"),
        ("a photo of a woman", "a photo of a woman", "names the person"),
        ("a photo of a smiling woman", "a photo of a woman", "names the person"),
        ("a photo of sks woman", "a photo of sks", "names the person"),
    ],
)
def test_what_is_not_certain_is_asked_for(instance_prompt: str, class_prompt: str | None, candidates: str) -> None:
    """Several words of equal claim, a word that CLIP knows well, none at all: by the key's name and with candidates."""
    with pytest.raises(ValueError, match=r"subject\.rare_token: must be given") as refused:
        guess_rare_token(instance_prompt, class_prompt)
    assert candidates in str(refused.value)
