"""What scoring in two tiers would have chosen: the champion of a first look's best against the champion of all.

    python benchmarks/screening.py runs/demo [RUN ...]                  runs that were scored in full; a second
    python benchmarks/screening.py --draw runs/screening --people 4     also sweeps the demo over others; minutes each

A first look is a part of a full score: the same noise and sampler. So a run that was scored in full tells what a first
look would have kept, to the picture. The people drawn are none that the demo's family was trained on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.alternating import table
from evaluation.config import ScreeningConfig
from sweeps.results.champion import champion
from sweeps.results.leaderboard import Row
from sweeps.results.results import Results, read_results
from sweeps.results.screening import kept_by_first_look

DEMO = Path(__file__).parents[1] / "examples" / "demo"
KEEP = (0.125, 0.25, 0.5)
HEADER = ("run", "first look", "keep", "pictures", "champion", "of a first look's best", "behind in face similarity")


@dataclass(frozen=True)
class Verdict:
    """What one way of screening would have come to."""

    run: str
    images_per_prompt: int
    keep: float
    pictures: float
    """Drawn, as a part of all."""
    champion: Row
    chosen: Row
    """The champion of those that would have been scored in full."""

    def cells(self) -> list[str]:
        """A line of the table."""
        is_same = self.chosen.key == self.champion.key
        behind = self.champion.face_similarity - self.chosen.face_similarity
        return [
            self.run,
            str(self.images_per_prompt),
            f"{self.keep:g}",
            f"{self.pictures:.2f}",
            f"{self.champion.trial} {self.champion.step}",
            "the same" if is_same else f"{self.chosen.trial} {self.chosen.step}",
            f"{behind:.3f}",
        ]


def verdicts_on(results: Results) -> Iterator[Verdict]:
    """Every way of screening a run that was scored in full and has a champion."""
    assert results.config is not None, f"{results.run_dir}: needs its sweep.yaml"
    whole = results.champion.row
    if whole is None:
        return
    evaluation = results.config.evaluation
    rows = [row for row in results.present_rows if not row.is_base]
    assert results.base is not None, "a run with a champion has a base model"
    for images_per_prompt in range(1, evaluation.images_per_prompt):
        for keep in KEEP:
            screening = ScreeningConfig(images_per_prompt=images_per_prompt, keep=keep)
            kept = kept_by_first_look(rows, evaluation.model_copy(update={"screening": screening}), results.rule)
            chosen = champion([results.base, *kept], results.rule).row
            if chosen is None:
                continue
            first = images_per_prompt / evaluation.images_per_prompt
            pictures = first + (1 - first) * len(kept) / len(rows)
            yield Verdict(results.name, images_per_prompt, keep, pictures, whole, chosen)


def sweep_over(person: int, folder: Path) -> Path:
    """The demo's sweep on another of the people that its family never saw; gone on with if it is there."""
    sys.path.insert(0, str(DEMO))
    import world  # the demo's scripts import each other by their bare names
    from draw_photos import NUM_HELD_OUT, NUM_PHOTOS, SCALE, draw_everyday_shot

    rng = np.random.default_rng([5, person])
    identity = world.draw_identity(rng)
    for name, number in (("photos", NUM_PHOTOS), ("photos_held_out", NUM_HELD_OUT)):
        place = folder / f"person-{person}" / name
        place.mkdir(parents=True, exist_ok=True)
        for index in range(number):
            world.paint(identity, draw_everyday_shot(rng), SCALE).save(place / f"{index:03d}.png")
    settings = {
        "name": f"person-{person}",
        "subject.photos": folder / f"person-{person}" / "photos",
        "evaluation.face.references": folder / f"person-{person}" / "photos_held_out",
        "evaluation.screening": "null",
        "render": "null",
    }
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command = ["run", str(DEMO / "sweep.yaml"), "--out", str(folder / "runs"), *overrides]
    subprocess.run([sys.executable, "-m", "sweeps", *command], check=True)
    return folder / "runs" / f"person-{person}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--draw", type=Path, metavar="FOLDER", help="where to sweep over other people")
    parser.add_argument("--people", type=int, default=4)
    asked = parser.parse_args(arguments)
    if asked.draw is not None:
        asked.runs += [sweep_over(person, asked.draw.resolve()) for person in range(asked.people)]
    verdicts = [verdict for run in asked.runs for verdict in verdicts_on(read_results(run))]
    print(table(HEADER, [verdict.cells() for verdict in verdicts]))
    for keep in KEEP:
        for images_per_prompt in sorted({verdict.images_per_prompt for verdict in verdicts}):
            alike = [v for v in verdicts if (v.keep, v.images_per_prompt) == (keep, images_per_prompt)]
            same = sum(verdict.chosen.key == verdict.champion.key for verdict in alike)
            print(f"first look {images_per_prompt}, keep {keep:g}: the same champion in {same} of {len(alike)} runs")


if __name__ == "__main__":
    main()
