"""Names of the pictures that renders follow. Needs no torch."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path


def reference_labels(references: Sequence[Path]) -> list[str]:
    """A name for each reference that no other has: its file's name, with its folder's where two are called alike.

    Told apart without suffix and case, since renders are files of these names; what is still alike is numbered.
    """
    stems = Counter(path.stem.casefold() for path in references)
    labels: list[str] = []
    for path in references:
        label = path.name if stems[path.stem.casefold()] == 1 else f"{path.parent.name} {path.name}".strip()
        taken = {Path(other).stem.casefold() for other in labels}
        numbers = (f"{Path(label).stem} {number}{path.suffix}" for number in itertools.count(2))
        labels.append(
            next(
                name
                for name in (label, *itertools.islice(numbers, len(references)))
                if Path(name).stem.casefold() not in taken
            )
        )
    return labels
