"""What a look found, a line each: that it is well, or what to do. Nothing is imported: every machine may make them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One line."""

    is_well: bool
    what: str
    """A word or two: what was looked at."""
    said: str
    """What was found; where it is not well, what to do."""
