"""How a script was started."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """What a launcher adds to a script's own settings."""

    processes: int = 1
    mixed_precision: str | None = None
    """Of the launcher or the environment; the script's own word goes first."""
