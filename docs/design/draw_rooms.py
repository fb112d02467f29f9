"""Draw the rooms of the project from its real imports.

    python docs/design/draw_rooms.py     writes rooms.svg beside itself, and says in words what it shows

A room is a folder or file; an arrow points from a room to one that it imports. Arrows that another route implies are
left out of the picture and counted below it: what is drawn is the shortest way to say who stands on whom.
"""

from __future__ import annotations

from pathlib import Path

import grimp
import matplotlib
import networkx
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).parents[2]
PACKAGES = ("sweeps", "evaluation", "training")
COLOURS = {"sweeps": "#dbe7f6", "evaluation": "#e3f1df", "training": "#f6e8d8"}
GROUND = (
    "canonical",
    "errors",
    "files",
    "layout",
    "manifest",
    "names",
    "paths",
    "pictures",
    "pixels",
    "png_chunks",
    "reading",
)
"""Of `training/`: what all rooms stand on, Stable Diffusion apart."""


def room_of(module: str) -> str | None:
    """The room that a module lies in: of `sweeps` its subfolder or file, of `training` its ground or the rest."""
    package, _, rest = module.partition(".")
    first = rest.split(".")[0]
    if not first:
        return None
    if package == "sweeps":
        return f"sweeps/{first}"
    if package == "training" and first in GROUND:
        return "training (ground)"
    return package


def read_rooms() -> networkx.DiGraph:
    """Rooms with their files and lines, and an edge for every room that another imports, with the number of imports."""
    imports = grimp.build_graph(*PACKAGES, include_external_packages=False, cache_dir=None)
    rooms = networkx.DiGraph()
    for module in sorted(imports.modules):
        room = room_of(module)
        if room is None:
            continue
        path = ROOT.joinpath(*module.split("."))
        file = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
        rooms.add_node(room)
        node = rooms.nodes[room]
        node["files"] = node.get("files", 0) + 1
        node["lines"] = node.get("lines", 0) + len(file.read_text(encoding="utf-8").splitlines())
        for imported in sorted(imports.find_modules_directly_imported_by(module)):
            other = room_of(imported)
            if other is not None and other != room:
                count = rooms.edges[room, other]["imports"] + 1 if rooms.has_edge(room, other) else 1
                rooms.add_edge(room, other, imports=count)
    return rooms


def floors(rooms: networkx.DiGraph) -> dict[str, int]:
    """Room -> its floor: one above the highest room that it imports.

    A room that imports none stands right below the lowest room that imports it; the ground is 0.
    """
    floor: dict[str, int] = {}
    for room in reversed(list(networkx.topological_sort(rooms))):
        floor[room] = 1 + max((floor[below] for below in rooms.successors(room)), default=-1)
    alone = [room for room in rooms if not rooms.out_degree(room)]
    return floor | {room: min(floor[above] for above in rooms.predecessors(room)) - 1 for room in alone}


def draw(rooms: networkx.DiGraph) -> Figure:
    """Every floor a row, the ground at the bottom."""
    floor = floors(rooms)
    rows: dict[int, list[str]] = {}
    for room in sorted(rooms, key=lambda room: (floor[room], room)):
        rows.setdefault(floor[room], []).append(room)
    height, width = len(rows), max(map(len, rows.values()))
    figure = Figure(figsize=(2.6 * width + 0.6, 1.15 * height + 0.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(-0.75, height - 0.4)
    places = {
        room: ((i + 0.5) * width / len(row) + (0.18 if level % 2 else -0.18) * (len(row) < width), float(level))
        for level, row in rows.items()
        for i, room in enumerate(row)
    }
    drawn = networkx.transitive_reduction(rooms)
    for room, below in sorted(drawn.edges):
        (x0, y0), (x1, y1) = places[room], places[below]
        bend = 0.0 if y0 - y1 < 2 else 0.35 if x1 < x0 else -0.35  # around the rooms between
        arrow = FancyArrowPatch(
            (x0, y0 - 0.24),
            (x1, y1 + 0.24),
            arrowstyle="-|>",
            connectionstyle=f"arc3,rad={bend}",
            mutation_scale=9,
            color="#7a869a",
            linewidth=1,
        )
        axes.add_patch(arrow)
    for room, (x, y) in places.items():
        box = FancyBboxPatch(
            (x - 0.42, y - 0.22),
            0.84,
            0.44,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=COLOURS[room.split("/")[0].split(" ")[0]],
            edgecolor="#3b4656",
            linewidth=0.9,
        )
        axes.add_patch(box)
        node = rooms.nodes[room]
        size = f"{node['files']} file{'s' * (node['files'] > 1)}, {node['lines']:,} lines"
        axes.text(x, y + 0.06, room, ha="center", va="center", fontsize=9.5, fontweight="bold", color="#1b2430")
        axes.text(x, y - 0.1, size, ha="center", va="center", fontsize=7.5, color="#3b4656")
    num_imports = sum(count for _, _, count in rooms.edges(data="imports"))
    axes.text(
        width / 2,
        -0.6,
        f"{len(rooms)} rooms; {rooms.number_of_edges()} arrows of {num_imports} imports, none back; "
        f"{drawn.number_of_edges()} drawn, the others follow from them",
        ha="center",
        fontsize=8.5,
        color="#3b4656",
    )
    return figure


def main() -> None:
    """Write the drawing, and what it says in words."""
    rooms = read_rooms()
    if not networkx.is_directed_acyclic_graph(rooms):
        raise SystemExit(f"rooms that import each other: {networkx.find_cycle(rooms)}")
    with matplotlib.rc_context({"svg.hashsalt": "rooms"}):  # the same drawing is the same file
        draw(rooms).savefig(Path(__file__).parent / "rooms.svg", metadata={"Date": None})
    for room, level in sorted(floors(rooms).items(), key=lambda item: (-item[1], item[0])):
        below = ", ".join(sorted(rooms.successors(room)))
        print(f"{level}  {room:20}  {below}")


if __name__ == "__main__":
    main()
