"""How numbers, names and refusals are written: the same in the terminal, the report and a model card."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from rich.filesize import decimal

NOTHING = "\N{EN DASH}"
"""Stands where there is no value."""


def learning_rate_text(rate: float | None) -> str:
    """A learning rate as people write it: `1e-4`, `2.5e-5`."""
    if rate is None:
        return "-"
    mantissa, exponent = f"{rate:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def duration_text(seconds: float | None) -> str:
    """`40 s`, `12 min` or `2 h 05 min`."""
    if seconds is None:
        return NOTHING
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def bytes_text(count: float) -> str:
    """`3.4 GB`, in powers of 1000 as disks are sold."""
    return decimal(int(count))


def score_text(value: float | None) -> str:
    """A cosine to three places, for a page."""
    return NOTHING if value is None else f"{value:.3f}".replace("-", "\N{MINUS SIGN}")


def signed_text(value: float | None) -> str:
    """A difference of cosines with its sign, for a page."""
    if value is not None and round(value, 3) == 0:
        return "0.000"
    return NOTHING if value is None else f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def public_name(model: str) -> str:
    """How a model is named to others: a hub id or name as it is, of a path on this machine only the last part."""
    name = model.removeprefix("local-dir:")
    return Path(name).name if Path(name).is_absolute() else name


def shorten(value: object, length: int = 60) -> str:
    """`repr` of a user's value, cut to fit in a message."""
    text = repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."


def unknown_key(key: str, known: Sequence[str]) -> str:
    """A sentence that refuses `key` and offers what may have been meant."""
    close = get_close_matches(key, known, n=1, cutoff=0.5)
    some = [*known[:8], "..."] if len(known) > 8 else known
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(some)}"
    return f"unknown key {shorten(key)}; {hint}"


def earlier_text(num_trials: int) -> str:
    """What is said of trials that the sweep file does not ask for any more."""
    which = "1 trial is" if num_trials == 1 else f"{num_trials} trials are"
    return f"{which} of an earlier state of the sweep file, shown as `earlier`, and in no verdict"


def failure_text(error: BaseException) -> str:
    """An exception as one line for the ledger."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
