"""Laws of `cluster.yaml` (a second): both variants satisfy Ray's own schema and keep what the README promises."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml

from sweeps.watch.grafana import variables_for
from sweeps.watch.server import PORT

CLUSTER = Path(__file__).parents[1] / "cluster.yaml"
SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())


def cloud_cluster() -> dict[str, Any]:
    return dict(yaml.safe_load(CLUSTER.read_text()))


def local_cluster() -> dict[str, Any]:
    """The commented variant, put over the file's own keys as its comment says."""
    lines = (
        CLUSTER.read_text()
        .split("# ---- Machines you already have")[1]
        .split("# ---- end of the variant")[0]
        .splitlines()
    )
    commented = [line.removeprefix("# ").removeprefix("#") for line in lines[1:]]
    start = next(i for i, line in enumerate(commented) if line.startswith("cluster_name:"))
    cluster = cloud_cluster() | yaml.safe_load("\n".join(commented[start:]))
    return {key: value for key, value in cluster.items() if key not in ("available_node_types", "head_node_type")}


@pytest.mark.parametrize("cluster", [cloud_cluster(), local_cluster()], ids=["cloud", "local"])
def test_satisfies_the_schema_of_ray(cluster: dict[str, Any]) -> None:
    """Ray's launcher accepts the file."""
    jsonschema.validate(cluster, SCHEMA)


def test_the_schema_can_refuse() -> None:
    """An unknown key is refused, so the test above can fail."""
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(cloud_cluster() | {"max_wrokers": 3}, SCHEMA)


def test_the_head_holds_no_trials() -> None:
    """The head offers no CPU to trials, in either variant."""
    cloud = cloud_cluster()
    assert cloud["available_node_types"][cloud["head_node_type"]]["resources"] == {"CPU": 0}
    assert any("--num-cpus=0" in command for command in local_cluster()["head_start_ray_commands"])


@pytest.mark.parametrize("cluster", [cloud_cluster(), local_cluster()], ids=["cloud", "local"])
def test_the_token_is_asked_for_and_the_dashboard_stays_inside(cluster: dict[str, Any]) -> None:
    """Tokens are asked for, their file is its owner's alone, and the dashboard listens on the head alone."""
    assert "--env=RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert "/home/ray/.ray/auth_token" in cluster["file_mounts"]
    assert any("chmod 600 ~/.ray/auth_token" in command for command in cluster["setup_commands"])
    assert any("--dashboard-host=127.0.0.1" in command for command in cluster["head_start_ray_commands"])


@pytest.mark.parametrize("cluster", [cloud_cluster(), local_cluster()], ids=["cloud", "local"])
def test_the_live_page_is_there_before_ray_and_in_its_dashboard(cluster: dict[str, Any]) -> None:
    """The head serves the folder that jobs write to, outlives the shell that started it, and Ray knows where."""
    stop, watch, start = cluster["head_start_ray_commands"]
    assert stop == "ray stop"
    assert re.search(r"\(setsid nohup dreamsweep watch (\S+) --port \d+ >> \S+ 2>&1 < /dev/null &\)$", watch)
    runs = re.findall(r"dreamsweep watch (\S+)", watch)[0]
    assert f"mkdir -p {runs} &&" in watch
    assert f"--out {runs} " in CLUSTER.read_text()
    settings, _, _ = start.partition("ray start")
    page = f"http://127.0.0.1:{PORT}"
    assert variables_for(page, page, {}).items() <= dict(setting.split("=", 1) for setting in settings.split()).items()


def test_the_live_page_has_one_port_everywhere() -> None:
    """In both variants, in the tunnel of the comment, and in the verb: the browser asks for the head's own port."""
    ports = re.findall(r"(?:--port |http://127\.0\.0\.1:|localhost:|-p )(\d{4})\b", CLUSTER.read_text())
    assert set(ports) == {str(PORT), "8265"}
    assert f"ray attach cluster.yaml -p 8265 -p {PORT}" in CLUSTER.read_text()


def test_image_and_constraints_name_the_same_ray() -> None:
    """A cluster's nodes and the clone run the same Ray release."""
    pinned = next(
        line for line in (CLUSTER.parent / "constraints.txt").read_text().splitlines() if line.startswith("ray==")
    )
    version = pinned.removeprefix("ray==")
    docker = cloud_cluster()["docker"]
    assert f":{version}-" in docker["head_image"]
    assert f":{version}-" in docker["worker_image"]
