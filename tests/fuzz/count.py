"""The table of docs/reliability.md: python -m tests.fuzz.count --examples 2000     some minutes."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported

from tests.fuzz.laws import KINDS, fuzz
from tests.fuzz.world import build_world


def count() -> None:
    """Print a row a kind; the first input that breaks a law ends it with its own report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=2000, help="inputs of each kind")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only these kinds")
    asked = parser.parse_args()
    print("| inputs | how many | answered | refused in words | slowest | memory grown by |")  # noqa: T201
    print("|---|---|---|---|---|---|", flush=True)  # noqa: T201
    with tempfile.TemporaryDirectory() as folder:
        world = build_world(Path(folder))
        for kind in asked.kind or KINDS:
            tally = fuzz(kind, world, asked.examples)
            total = tally.answered + tally.refused
            numbers = f"{tally.answered} | {tally.refused}"
            limits = f"{tally.slowest:.2f} s | {tally.peak_bytes / 1e6:.0f} MB"
            print(f"| {kind} | {total} | {numbers} | {limits} |", flush=True)  # noqa: T201


if __name__ == "__main__":
    count()
