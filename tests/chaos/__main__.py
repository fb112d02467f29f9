"""Faults in the middle of a sweep, on this project and on plain Ray Tune, and what each of them costs.

    python -m tests.chaos                                       all of them, about an hour on two idle cores
    python -m tests.chaos --faults driver-killed,worker-killed --sides dreamsweep

Writes a report after every case and goes on from it: cases that the report has are not made again.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.chaos.faults import FAULTS, CannotBeMade
from tests.chaos.judge import Outcome, judge
from tests.chaos.stage import ROOT, SIDES, Side, Stage
from tests.chaos.table import put_into, table

DOCS = ROOT / "docs" / "reliability.md"


def run_case(stage: Stage, name: str, side: Side, seed: int, undisturbed: Outcome | None) -> dict[str, Any]:
    """Make one fault and say what it cost.

    Args:
        stage: where.
        name: of the fault.
        side: whose sweep.
        seed: of where it strikes.
        undisturbed: the same side's sweep without a fault; None where this is that sweep.
    """
    _, make = FAULTS[name]
    case = stage.case(name, side)
    try:
        struck = make(case, random.Random(f"{seed}/{name}"))
        assert struck.first is not None
        if not struck.ended and (struck.first.process.returncode != 0 or struck.needs_rerun):
            for _ in range(struck.reruns):
                case.start().end()
        seconds = (struck.ended or time.time()) - struck.time
        said = struck.first.last_words if struck.first.process.returncode else ""
        outcome = case.outcome()
        verdict = judge(case.log(), outcome, undisturbed or outcome)
    except CannotBeMade as reason:
        return {"cannot_be_made": str(reason)}
    finally:
        case.clear_away()
    return {
        "verdict": asdict(verdict),
        "outcome": outcome.as_dict(),
        "seconds": round(seconds, 1),
        "exit_codes": [driver.process.returncode for driver in case.drivers],
        "said": said.replace(str(case.run_dir), "RUN"),
        "notes": struck.notes,
    }


def main() -> None:
    """Read the command line, make the faults, write report and table."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--faults", default=",".join(FAULTS), metavar="NAME,...", help=f"of {', '.join(FAULTS)}")
    parser.add_argument("--sides", default=",".join(SIDES), metavar="NAME,...", help=f"of {', '.join(SIDES)}")
    parser.add_argument("--seed", type=int, default=0, help="decides after which step each fault strikes")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="the report; one that is there is gone on with")
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="a new folder to keep all runs in; else a temporary one"
    )
    parser.add_argument("--docs", action="store_true", help="write the table into docs/reliability.md too")
    asked = parser.parse_args()
    names, sides = asked.faults.split(","), asked.sides.split(",")
    if unknown := [*(set(names) - FAULTS.keys()), *(set(sides) - set(SIDES))]:
        parser.error(f"unknown: {', '.join(unknown)}")
    report: dict[str, Any] = {"seed": asked.seed, "rows": {}}
    if asked.out and asked.out.exists():
        report = json.loads(asked.out.read_text())
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        stage = Stage(asked.work or Path(temporary) / "stage")
        for side in sides:
            for name in dict.fromkeys(["nothing", *names]):
                key = f"{name}/{side}"
                if key in report["rows"]:
                    continue
                calm = report["rows"].get(f"nothing/{side}")
                row = run_case(stage, name, side, asked.seed, Outcome.of(calm["outcome"]) if calm else None)
                report["rows"][key] = row
                print(key, json.dumps({k: v for k, v in row.items() if k != "outcome"}), file=sys.stderr, flush=True)  # noqa: T201
                if asked.out:
                    asked.out.write_text(json.dumps(report, indent=1))
    print(table(report))  # noqa: T201
    if asked.docs:
        put_into(DOCS, table(report))


if __name__ == "__main__":
    main()
