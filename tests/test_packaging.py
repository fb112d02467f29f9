"""Laws of what `pyproject.toml` declares (a second): nothing the code imports is left out, and the pins satisfy it."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
DEPENDENCIES = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = {name: [Requirement(line) for line in lines] for name, lines in PROJECT["optional-dependencies"].items()}
BUILD = [Requirement(line) for line in PYPROJECT["build-system"]["requires"]]

PACKAGES = ("sweeps", "evaluation", "training")
OTHER_NAMES = {
    "grpc": "grpcio",
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "dlib": "dlib-bin",
    "open_clip": "open-clip-torch",
    "yaml": "pyyaml",
}
"""Import name -> distribution, where they differ."""


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def third_party_imports(package: str) -> Iterator[tuple[str, str]]:
    """File and top-level name of every import of what is neither Python's own nor ours, wherever it stands."""
    for file in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                modules = [node.module]
            for name in {module.partition(".")[0] for module in modules}:
                if name not in sys.stdlib_module_names and name not in PACKAGES:
                    yield file.relative_to(ROOT).as_posix(), name


@pytest.mark.parametrize("package", PACKAGES)
def test_what_the_code_imports_is_declared(package: str) -> None:
    """Every third-party package that is imported is a dependency or in an extra for users, not a dependency's own."""
    declared = {
        canonicalize_name(requirement.name)
        for requirements in (DEPENDENCIES, *(EXTRAS[name] for name in EXTRAS if name != "dev"))
        for requirement in requirements
    }
    undeclared = [
        f"{file}: {name}"
        for file, name in third_party_imports(package)
        if canonicalize_name(OTHER_NAMES.get(name, name)) not in declared
    ]
    assert undeclared == []


@pytest.mark.parametrize("requirement", DEPENDENCIES, ids=lambda requirement: requirement.name)
def test_a_dependency_names_its_oldest_release(requirement: Requirement) -> None:
    """Without a lower bound an environment keeps a release that lacks what the code calls, and pip is content."""
    assert any(specifier.operator in (">=", "==", "~=") for specifier in requirement.specifier)


@pytest.mark.parametrize(
    "requirement",
    [*DEPENDENCIES, *(requirement for group in EXTRAS.values() for requirement in group), *BUILD],
    ids=str,
)
def test_the_pins_satisfy_what_is_declared(requirement: Requirement) -> None:
    """Each requirement, those of extras and of the build too, has a pin in constraints.txt that it allows."""
    pinned = pins().get(canonicalize_name(requirement.name))
    assert pinned is not None, f"no pin of {requirement.name}"
    assert requirement.specifier.contains(pinned, prereleases=True), f"{requirement} refuses the pin {pinned}"
