"""Who does which part of work that several processes do together. Ground: it knows nothing else of the project."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """A process's share of what `world_size` processes do together; all of it where it is alone."""

    rank: int = 0
    """In [0, world_size)."""
    world_size: int = 1

    @property
    def is_whole(self) -> bool:
        """Is there nobody else?"""
        return self.world_size == 1

    @property
    def is_first(self) -> bool:
        """Of several processes that hold the same, this one writes it down."""
        return self.rank == 0

    def of(self, size: int) -> range:
        """This process's places of `size`: one stretch, as long as the others' or one longer."""
        return range(self.rank * size // self.world_size, (self.rank + 1) * size // self.world_size)


ALONE = Share()
