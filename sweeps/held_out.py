"""Which photos are kept from training, for pictures to be compared with.

Likeness to the very photos that were trained on rewards learning them by heart. Where the sweep file names no other
photos to compare with, a quarter of the subject's own are held out: every fourth or so, beginning where the search's
seed says, so that another seed holds out others.
"""

from __future__ import annotations

import json
from pathlib import Path

from sweeps.config import SweepConfig
from sweeps.ledger.folder import RunFolder
from training.errors import UserError
from training.names import name_text
from training.photos import MIN_PHOTOS
from training.pictures import find_photos

FROM_PHOTOS = 10
"""So many photos can spare some: DreamBooth wants 8 or more of a face."""
SHARE = 4
FEWEST = 2
"""One photo says little about likeness."""


def num_held_out(config: SweepConfig, num_photos: int) -> int:
    """Photos that are not trained on.

    Raises:
        UserError: more are asked for than training can spare.
    """
    asked = config.subject.held_out_photos
    if asked is None:
        return num_held_out_by_default(num_photos) if config.evaluation.face.references is None else 0
    if asked and num_photos - asked < MIN_PHOTOS:
        raise UserError(
            f"subject.held_out_photos: must leave {MIN_PHOTOS} or more photos to train on, got {asked} of {num_photos}"
        )
    return asked


def num_held_out_by_default(num_photos: int) -> int:
    """Where the sweep file names neither a number nor other photos to compare with."""
    return max(FEWEST, num_photos // SHARE) if num_photos >= FROM_PHOTOS else 0


def held_out_photos(config: SweepConfig) -> list[Path]:
    """The photos that a new run of this sweep holds out, in order of name.

    Raises:
        UserError: more are asked for than training can spare.
    """
    photos = find_photos(config.subject.photos)
    number = num_held_out(config, len(photos))
    places = {(place * len(photos) // number + config.search.seed) % len(photos) for place in range(number)}
    return [photo for place, photo in enumerate(photos) if place in places]


def claim_held_out(config: SweepConfig, folder: RunFolder) -> list[Path]:
    """The photos that this run holds out, which it goes on with whatever seed the sweep file has by now.

    A run that was begun before photos were held out goes on training on all of them.

    Raises:
        UserError: what the run claims cannot be read, or more are asked for than training can spare.
    """
    claimed = folder.identity().get("held_out")
    if claimed is None and folder.base() is not None:
        return []
    names = {_name(config, photo) for photo in held_out_photos(config)} if claimed is None else set(json.loads(claimed))
    folder.claim("held_out", json.dumps(sorted(names)))
    return [photo for photo in find_photos(config.subject.photos) if _name(config, photo) in names]


def _name(config: SweepConfig, photo: Path) -> str:
    return name_text(photo.relative_to(config.subject.photos).as_posix())
