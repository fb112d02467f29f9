"""What a cluster that grows on demand may become: the node types in the file that Ray's cluster launcher leaves behind.

Right after `ray up` no worker is there yet. Whoever looks at the machines alone sees a head without CPUs and GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from training.errors import UserError

BOOTSTRAP_CONFIG = Path("~/ray_bootstrap_config.yaml")
"""What Ray's cluster launcher leaves on the head of a cluster that grows on demand."""


@dataclass(frozen=True)
class NodeType:
    """A kind of machine that the cluster can start."""

    name: str
    resources: Mapping[str, float] | None
    """`CPU`, `GPU`, ...; None where the file does not say, as for machines that one has already."""
    max_workers: int


@dataclass(frozen=True)
class Growth:
    """How far a cluster can grow."""

    node_types: tuple[NodeType, ...]
    """Empty where nothing is known of them."""
    max_workers: int | None
    """Machines besides the head, of all types together; None where nothing is known."""

    @property
    def is_known(self) -> bool:
        """Does the file say what every machine will have?"""
        return bool(self.node_types) and all(kind.resources is not None for kind in self.node_types)

    def most(self, resource: str) -> float:
        """The most of it that one machine of any known type will have."""
        return max(((kind.resources or {}).get(resource, 0) for kind in self.node_types), default=0)

    def room(self, fits: Callable[[Mapping[str, float]], int]) -> int | None:
        """Trials that all machines together would hold, as `fits` counts them on one; None where it is not known."""
        if not self.is_known or self.max_workers is None:
            return None
        room, left = 0, self.max_workers
        for each, kind in sorted(((fits(kind.resources or {}), kind) for kind in self.node_types), key=lambda p: -p[0]):
            machines = min(kind.max_workers, left)
            room, left = room + machines * each, left - machines
        return room


def growth_of_cluster(autoscaling: bool) -> Growth | None:
    """What the cluster may grow to; None where it does not grow.

    Args:
        autoscaling: the sweep file's word that it does, for launchers that leave no file (KubeRay).

    Raises:
        UserError: the launcher's file is there and cannot be read.
    """
    path = BOOTSTRAP_CONFIG.expanduser()
    if not path.exists():
        return Growth((), None) if autoscaling else None
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        return _growth_in(config)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: must be the file of Ray's cluster launcher: {error}") from None


def _growth_in(config: Mapping[str, Any]) -> Growth:
    limit = int(config.get("max_workers", 2))  # 2 is Ray's own default
    kinds = config.get("available_node_types") or {}
    head = config.get("head_node_type")
    node_types = tuple(
        NodeType(name, kind.get("resources") or None, int(kind.get("max_workers", 0 if name == head else limit)))
        for name, kind in kinds.items()
    )
    return Growth(tuple(kind for kind in node_types if kind.max_workers > 0), limit)
