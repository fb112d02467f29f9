"""Laws of the wheel: built from a checkout and installed where no repository is, it has what it needs and no more.

The dependencies are lent by this environment, so nothing is downloaded: pytest tests/test_wheel.py     about 15 seconds
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email import message_from_string
from importlib.util import find_spec
from pathlib import Path

import pytest

from sweeps.config import load_sweep
from sweeps.plan import plan_of

pytest.importorskip("hatchling", reason="needs hatchling, which the extra `dev` brings")

ROOT = Path(__file__).parents[1]
PACKAGES = ("sweeps", "evaluation", "training")
DEMO = ROOT / "examples" / "demo"
DEMO_DATA = ("photos", "photos_held_out", "controls", "family")
LEFT_BEHIND = (
    "examples/demo/.work/unet.pt",
    "examples/demo/family/__pycache__/world.cpython-311.pyc",
    "sweeps/__pycache__/cli.cpython-311.pyc",
    "sweeps/report/__pycache__/page.cpython-311.pyc",
)
"""What work leaves in a checkout."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a checkout in which people have worked."""
    checkout = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, checkout)
    for name in (*PACKAGES, "examples", "tests", "docs"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__", ".work"))
    for name in LEFT_BEHIND:
        (checkout / name).parent.mkdir(exist_ok=True)
        (checkout / name).write_bytes(b"left behind")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(checkout / "dist")]
    subprocess.run(build, cwd=checkout, check=True, capture_output=True)  # noqa: S603
    (built,) = (checkout / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel in it, and the packages that it depends on lent by this one."""
    folder = tmp_path_factory.mktemp("installed") / "env"
    venv.create(folder, symlinks=True, with_pip=False)
    subprocess.run([*installer(folder), str(wheel)], check=True, capture_output=True)  # noqa: S603
    # A folder that a .pth file names is searched last, and its own .pth files are not read: not that of an editable
    # install either.
    lent = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    (site_packages(folder) / "lent.pth").write_text("\n".join(lent) + "\n")
    return folder


def installer(environment: Path) -> list[str]:
    """The command that installs one file and nothing else, by pip or uv, whichever made this environment."""
    python = str(environment / "bin" / "python")
    if find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"]
    if (uv := shutil.which("uv")) is not None:
        return [uv, "pip", "install", "--python", python, "--no-deps", "--no-index"]
    pytest.skip("needs pip or uv")


def site_packages(environment: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(environment), "platbase": str(environment)}))


def output(environment: Path, elsewhere: Path, program: str, *arguments: str) -> str:
    """What a program of the environment prints, called from a folder that has nothing to do with the repository."""
    surroundings = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(  # noqa: S603
        [str(environment / "bin" / program), *arguments],
        cwd=elsewhere,
        env=surroundings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_holds_the_packages_the_demo_s_data_and_nothing_else(wheel: Path) -> None:
    """All code with the report's templates, the demo's sweep files, photos and models; no tests, docs or leftovers."""
    code = [file for package in PACKAGES for file in (ROOT / package).rglob("*")]
    data = [*DEMO.glob("*.yaml"), *(file for part in DEMO_DATA for file in (DEMO / part).rglob("*"))]
    expected = {file.relative_to(ROOT).as_posix() for file in code if file.is_file()}
    expected |= {f"sweeps/demo_data/{file.relative_to(DEMO).as_posix()}" for file in data if file.is_file()}
    expected = {name for name in expected if "__pycache__" not in name}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected
    assert {
        "sweeps/report/templates/report.html.j2",
        "sweeps/report/templates/page.js",
        "sweeps/watch/templates/watch.css",
        "sweeps/judge/templates/page.html.j2",
        "sweeps/judge/templates/judge.js",
    } <= names
    assert {"sweeps/demo_data/sweep.yaml", "sweeps/demo_data/photos/000.png"} <= names


def test_its_metadata_names_licence_and_command(wheel: Path) -> None:
    """The licence by its SPDX name and as a file, the Python it needs, and one command."""
    with zipfile.ZipFile(wheel) as archive:
        (folder,) = {name.partition("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        metadata = message_from_string(archive.read(f"{folder}/METADATA").decode())
        licence = archive.read(f"{folder}/licenses/LICENSE")
        commands = archive.read(f"{folder}/entry_points.txt").decode()
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert licence == (ROOT / "LICENSE").read_bytes()
    assert metadata["Requires-Python"] == ">=3.11"
    assert commands.split("\n", 1)[0] == "[console_scripts]"
    assert commands.split("\n")[1:] == ["dreamsweep = sweeps.cli:main", ""]


def test_the_installed_packages_are_the_wheel_s(environment: Path, tmp_path: Path) -> None:
    """Code and demo come from the new environment, not from the repository that lends its dependencies."""
    program = "import sweeps, evaluation, training; from sweeps.demo import demo_sweep_file as demo;"
    program += "print(*(p.__file__ for p in (sweeps, evaluation, training)), demo(), sep='\\n')"
    there = site_packages(environment).resolve()
    found = [Path(line).resolve() for line in output(environment, tmp_path, "python", "-c", program).splitlines()]
    assert found == [*(there / name / "__init__.py" for name in PACKAGES), there / "sweeps/demo_data/sweep.yaml"]


def test_the_command_answers(environment: Path, tmp_path: Path) -> None:
    """`dreamsweep --help` names the verbs."""
    said = output(environment, tmp_path, "dreamsweep", "--help")
    assert all(verb in said for verb in ("demo", "check", "run", "show", "score", "render", "report", "export"))


@pytest.mark.slow
def test_the_demo_that_it_brings_passes_its_check(environment: Path, tmp_path: Path) -> None:
    """`dreamsweep check` finds photos, models and references beside the wheel's own sweep file, and prints its plan."""
    sweep_file = site_packages(environment) / "sweeps" / "demo_data" / "sweep.yaml"
    plan = output(environment, tmp_path, "dreamsweep", "check", str(sweep_file))
    assert plan.splitlines()[:-1] == plan_of(load_sweep(DEMO / "sweep.yaml")).lines()
    assert plan.splitlines()[-1].startswith("faces     not looked for")
