"""The report of the faults as a table, and its place in docs/reliability.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.chaos.faults import FAULTS
from tests.chaos.stage import SIDES

BEGIN, END = "<!-- faults: begin, written by `python -m tests.chaos` -->", "<!-- faults: end -->"
NAMES = {"dreamsweep": "dreamsweep", "ray": "Ray Tune"}
HEAD = (
    "fault",
    "",
    "finished trials lost",
    "steps repeated",
    "of these beyond the last scoring point",
    "champion changed",
    "unfinished",
    "seconds to the end",
    "exit",
    "what was said",
)


def table(report: Mapping[str, Any]) -> str:
    """Markdown: two rows a fault."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + " --- |" * len(HEAD)]
    for name, (title, _) in FAULTS.items():
        for side in SIDES:
            row = report["rows"].get(f"{name}/{side}")
            if row is not None:
                lines.append("| " + " | ".join([title, NAMES[side], *_cells(row)]) + " |")
    return "\n".join(lines)


def _cells(row: Mapping[str, Any]) -> list[str]:
    if "cannot_be_made" in row:
        return ["", "", "", "", "", "", "", row["cannot_be_made"]]
    verdict = row["verdict"]
    said = "; ".join([*([f"`{_short(row['said'])}`"] if row["said"] else []), *row["notes"]])
    return [
        str(verdict["lost"]),
        str(verdict["repeated"]),
        str(verdict["repeated_beyond"]),
        "yes" if verdict["champion_changed"] else "no",
        str(verdict["unfinished"]),
        f"{row['seconds']:.0f}",
        " then ".join(map(str, row["exit_codes"])),
        said,
    ]


def _short(text: str, length: int = 180) -> str:
    text = text.replace("|", "/").replace("`", "'")
    return text if len(text) <= length else text[: length - 3] + "..."


def put_into(docs: Path, text: str) -> None:
    """Replace the table of a page that has a place for it."""
    page = docs.read_text()
    place = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if place.search(page):
        docs.write_text(place.sub(lambda _: f"{BEGIN}\n\n{text}\n\n{END}", page))
