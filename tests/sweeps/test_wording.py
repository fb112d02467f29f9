"""Numbers as people write them, the same everywhere. `pytest tests/sweeps/test_wording.py`, a second."""

from __future__ import annotations

import pytest

from sweeps.wording import bytes_text, duration_text, learning_rate_text, public_name, score_text, signed_text


@pytest.mark.parametrize(("seconds", "text"), [(40, "40 s"), (720, "12 min"), (7500, "2 h 05 min")])
def test_times_are_readable(seconds: float, text: str) -> None:
    """In the unit that one would say."""
    assert duration_text(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(12, "12 bytes"), (3_440_000_000, "3.4 GB"), (2_500_000, "2.5 MB")])
def test_bytes_are_readable(count: int, text: str) -> None:
    """In powers of 1000, as disks are sold."""
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [(1e-4, "1e-4"), (2.5e-5, "2.5e-5"), (0.001, "1e-3"), (1.0, "1e0"), (0.000261, "2.61e-4"), (None, "-")],
)
def test_a_learning_rate_has_one_text(rate: float | None, text: str) -> None:
    """In names, tables, plots and cards alike."""
    assert learning_rate_text(rate) == text


def test_scores_carry_a_true_minus_and_nothing_is_a_dash() -> None:
    """As typographers want it on a page."""
    assert (score_text(-0.1234), score_text(None)) == ("\N{MINUS SIGN}0.123", "\N{EN DASH}")
    assert (signed_text(0.0201), signed_text(-0.0004)) == ("+0.020", "0.000")


def test_a_model_on_this_machine_is_named_by_its_last_part() -> None:
    """Folders of the machine are nobody's business."""
    assert public_name("/somewhere/models/sd15") == "sd15"
    assert public_name("local-dir:/somewhere/clip") == "clip"
    assert public_name("owner/model") == "owner/model"
