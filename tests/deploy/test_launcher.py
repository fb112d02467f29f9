"""Laws of the three files for Ray's cluster launcher: what `ray up` does, by Ray's own code, on a machine of stubs.

pytest tests/deploy/test_launcher.py     half a minute; no cloud, no Docker, no Ray session
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import hash_runtime_conf, prepare_config

from sweeps.watch.grafana import variables_for
from sweeps.watch.server import PORT
from tests.deploy.machine import CLONE, Machine

SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
FILES = {"aws": CLONE / "cluster.yaml", "gcp": CLONE / "deploy/gcp.yaml", "local": CLONE / "deploy/machines.yaml"}
CLOUDS = ["aws", "gcp"]
FILLED = {
    "FILE_SYSTEM.efs": "fs-0123456789abcdef0.efs",
    "FILESTORE_IP": "10.0.0.2",
    "project_id: null": "project_id: p",
}


def text_of(name: str) -> str:
    """The file, its placeholders replaced as its first lines ask."""
    text = FILES[name].read_text()
    for placeholder, value in FILLED.items():
        text = text.replace(placeholder, value)
    return text


def config_of(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load(FILES[name].read_text()))


@pytest.fixture
def laptop(tmp_path: Path) -> Path:
    """A home folder with what the first lines of the files ask for: a token and a key."""
    home = tmp_path / "laptop"
    for name in (".ray/auth_token", ".ssh/id_ed25519"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("secret")
    return home


@pytest.mark.parametrize("name", FILES)
def test_satisfies_the_schema_of_ray(name: str) -> None:
    """Ray's launcher accepts the file, and would not accept any."""
    jsonschema.validate(config_of(name), SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config_of(name) | {"max_wrokers": 3}, SCHEMA)


@pytest.mark.parametrize("name", FILES)
def test_a_clean_clone_has_what_is_copied(name: str, tmp_path: Path, laptop: Path) -> None:
    """Ray reads file mounts after it has rented the head: each is in the repository, and none holds more."""
    ignored = {line.strip("/") for line in (CLONE / ".gitignore").read_text().splitlines()}
    mounts = set(config_of(name)["file_mounts"].values())
    assert mounts >= {"~/.ray/auth_token", "pyproject.toml", "sweeps", "training", "evaluation"}
    for source in mounts - {"~/.ray/auth_token"}:
        assert (CLONE / source).exists()
        assert source not in {".", "photos", *ignored}

    machine = Machine(tmp_path / "head")
    with machine.entered():
        config = machine.config(text_of(name))
        hash_runtime_conf(config["file_mounts"], None, config)


@pytest.mark.parametrize("name", FILES)
def test_the_head_comes_up_and_comes_up_again(name: str, tmp_path: Path, laptop: Path) -> None:
    """All of `ray up` succeeds, twice: volume, token, installation, live page, then Ray behind its token."""
    machine = Machine(tmp_path / "head")
    if name == "local":
        machine.shared.mkdir()
    for _ in range(2):
        machine.up(text_of(name))
    home = machine.home if name == "local" else machine.container
    assert (home / ".ray/auth_token").stat().st_mode & 0o777 == 0o600
    assert (home / "dreamsweep/sweeps/cli.py").exists()
    assert any("--constraint" in asked and "dreamsweep[adam8bit,dlib,heif]" in asked for asked in machine.asked("pip"))
    assert any(asked.startswith(f"watch {machine.shared}/runs --port {PORT}") for asked in machine.asked("dreamsweep"))
    started = [asked for asked in machine.asked("ray") if asked.startswith("start --head")]
    assert len(started) == 2
    assert "--dashboard-host=127.0.0.1" in started[0]
    if name in CLOUDS:
        assert len(machine.asked("mount")) == 1
        assert len([asked for asked in machine.asked("apt-get") if "install" in asked]) == 1
        assert any("--env=RAY_AUTH_MODE=token" in asked for asked in machine.asked("docker"))


@pytest.mark.parametrize("name", FILES)
def test_a_worker_joins(name: str, tmp_path: Path, laptop: Path) -> None:
    """A GPU machine is set up and joins the head; a rented one listens for its end from then on."""
    machine = Machine(tmp_path / "worker")
    if name == "local":
        machine.shared.mkdir()
    assert machine.join(text_of(name)) == 0
    assert [asked for asked in machine.asked("ray") if asked.startswith("start")] == ["start --address=10.0.0.1:6379"]
    if name in CLOUDS:
        assert any(asked.endswith(f"deploy/preemption.py {name}") for asked in machine.asked("python"))
        assert any("--gpus=all" in asked for asked in machine.asked("docker") if asked.startswith("run"))


BROKEN = [
    ("aws", {"modinfo": "echo 570.86.15"}, r"dreamsweep: the NVIDIA driver of this image is 570.86.15 .*580 or newer"),
    ("aws", {"modinfo": "exit 1"}, r"dreamsweep: the NVIDIA driver of this image is 0 \(0: none\)"),
    ("gcp", {"modinfo": "echo 535.1"}, r"dreamsweep: the NVIDIA driver of this image is 535.1 .*580 or newer"),
    ("gcp", {"timeout": "exit 124"}, r"dreamsweep: the NVIDIA driver of this image did not come up"),
    ("gcp", {"id": "echo 1001"}, r"dreamsweep: the user of this image is 1001, the container's is 1000"),
    ("local", {"nvidia-smi": "printf '560.1\n560.1\n'"}, r"dreamsweep: .*NVIDIA driver 560.1 is too old"),
    ("local", {"python3": "exit 1"}, r"dreamsweep: .*python3 must be Python 3.11 or newer"),
    *((name, {"mount": "exit 32"}, r"dreamsweep: \S+:/\S* cannot be mounted") for name in CLOUDS),
    *(
        (name, {"chown": '[ "$1" != 1000:100 ]'}, r"dreamsweep: \S+:/\S* does not let root give the folder")
        for name in CLOUDS
    ),
]


@pytest.mark.parametrize(("name", "answers", "line"), BROKEN, ids=lambda value: str(value)[:40])
def test_what_is_wrong_with_a_machine_is_one_line(
    name: str, answers: dict[str, str], line: str, tmp_path: Path, laptop: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """`ray up` ends before Ray starts, with one line that says what to mend."""
    machine = Machine(tmp_path / "head", answers)
    if name == "local":
        machine.shared.mkdir()
    with pytest.raises(click.ClickException):
        machine.up(text_of(name))
    said = [said for said in "".join(capfd.readouterr()).splitlines() if said.startswith("dreamsweep:")]
    assert len(said) == 1
    assert re.search(line, said[0])
    assert not [asked for asked in machine.asked("ray") if asked.startswith("start")]


@pytest.mark.parametrize("name", FILES)
def test_a_placeholder_is_refused(name: str, tmp_path: Path, laptop: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A file that was not filled in, or whose shared folder is missing, says so in one line."""
    machine = Machine(tmp_path / "head")
    with pytest.raises(click.ClickException):
        machine.up(FILES[name].read_text())
    said = [said for said in "".join(capfd.readouterr()).splitlines() if said.startswith("dreamsweep:")]
    assert len(said) == 1
    assert "is a placeholder" in said[0] or "must be a folder that all machines share" in said[0]
    assert not machine.asked("mount")


@pytest.mark.parametrize("name", CLOUDS)
def test_a_worker_whose_gpu_torch_does_not_reach_stays_out(name: str, tmp_path: Path, laptop: Path) -> None:
    """It would train on its CPU, for the price of its GPU."""
    machine = Machine(tmp_path / "worker", {"python": 'case "$*" in *is_available*) exit 1 ;; esac'})
    assert machine.join(text_of(name)) != 0
    assert not [asked for asked in machine.asked("ray") if asked.startswith("start")]


@pytest.mark.parametrize("name", FILES)
def test_the_head_trains_nothing(name: str) -> None:
    """No trial lands on the head."""
    config = config_of(name)
    if name == "local":
        assert "--num-cpus=0 --num-gpus=0" in config["head_start_ray_commands"][2]
    else:
        assert config["available_node_types"][config["head_node_type"]]["resources"] == {"CPU": 0}


@pytest.mark.parametrize("name", FILES)
def test_the_live_page_is_there_before_ray_and_in_its_dashboard(name: str) -> None:
    """The head serves the folder that jobs write to, outlives the shell that started it, and Ray knows where."""
    stop, watch, start = config_of(name)["head_start_ray_commands"]
    assert stop.endswith("ray stop")
    assert re.search(r"setsid nohup dreamsweep watch (\S+) --port \d+ >> \S+ 2>&1 < /dev/null &\)$", watch)
    settings, _, _ = start.partition("ray start")
    page = f"http://127.0.0.1:{PORT}"
    assert variables_for(page, page, {}).items() <= dict(setting.split("=", 1) for setting in settings.split()).items()


@pytest.mark.parametrize("name", FILES)
def test_the_live_page_has_one_port_everywhere(name: str) -> None:
    """In the commands, in the tunnel of the first lines, and in the verb: the browser asks for the head's own port."""
    text = FILES[name].read_text()
    ports = re.findall(r"(?:--port |http://127\.0\.0\.1:|localhost:|-p )(\d{4})\b", text)
    assert set(ports) == {str(PORT), "8265"}
    assert f"ray attach {FILES[name].relative_to(CLONE)} -p 8265 -p {PORT}" in text


def test_image_and_constraints_name_the_same_ray() -> None:
    """The machines of a cluster and the clone run the same Ray release."""
    pinned = next(line for line in (CLONE / "constraints.txt").read_text().splitlines() if line.startswith("ray=="))
    for name in CLOUDS:
        assert f":{pinned.removeprefix('ray==')}-py311" in config_of(name)["docker"]["image"]


@pytest.mark.parametrize("name", FILES)
def test_shell_is_clean(name: str, tmp_path: Path) -> None:
    """Shellcheck finds nothing in any command."""
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("needs shellcheck")
    config = config_of(name)
    lists = [value for key, value in config.items() if key.endswith("commands")]
    script = tmp_path / "commands.sh"
    script.write_text("#!/bin/bash\n" + "\n".join(f"(\n{command}\n)" for commands in lists for command in commands))
    # SC2088 and SC1090: files of the machine; SC2016: nothing is meant to expand inside python's and bash's own -c.
    done = subprocess.run([shellcheck, "--exclude=SC2016", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_ec2_knows_every_word() -> None:
    """The types of machines are what EC2's RunInstances takes, by the description that boto3 ships."""
    loaders = pytest.importorskip("botocore.loaders", reason="needs boto3")
    from botocore.model import ServiceModel
    from botocore.validate import ParamValidator

    operation = ServiceModel(loaders.Loader().load_service_model("ec2", "service-2"), "ec2").operation_model(
        "RunInstances"
    )
    for kind in config_of("aws")["available_node_types"].values():
        asked = {**kind["node_config"], "MinCount": 1, "MaxCount": 1}
        assert not ParamValidator().validate(asked, operation.input_shape).has_errors()
        assert asked.keys() <= operation.input_shape.members.keys()
        assert asked["ImageId"] == "AMI"


def test_compute_engine_knows_every_word() -> None:
    """The types of machines are what Compute Engine takes, by the description that Google's client ships."""
    cache = pytest.importorskip("googleapiclient.discovery_cache", reason="needs google-api-python-client")
    schemas = json.loads((Path(cache.__file__).parent / "documents/compute.v1.json").read_text())["schemas"]

    def check(value: Any, schema: dict[str, Any], place: str) -> None:
        schema = schemas[schema["$ref"]] if "$ref" in schema else schema
        if isinstance(value, dict):
            assert schema.get("type") == "object", place
            for key, inner in value.items():
                assert key in schema["properties"], f"{place}.{key}"
                check(inner, schema["properties"][key], f"{place}.{key}")
        elif isinstance(value, list):
            assert schema.get("type") == "array", place
            for inner in value:
                check(inner, schema["items"], place)
        else:
            assert value in schema.get("enum", [value]), f"{place}: {value}"

    for name, kind in prepare_config(yaml.safe_load(text_of("gcp")))["available_node_types"].items():
        check(kind["node_config"], {"$ref": "Instance"}, name)
