"""Laws of the manifests for KubeRay: Kubernetes' own schemas, and what of KubeRay's is relied upon.

pytest tests/deploy/test_kuberay.py     seconds

With KUBERAY_CRDS, a folder with KubeRay's `ray.io_rayclusters.yaml` and `ray.io_rayjobs.yaml`, its schemas too.
"""

from __future__ import annotations

import copy
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from sweeps.cli import app
from sweeps.watch.grafana import variables_for
from sweeps.watch.server import PORT
from tests.deploy.machine import CLONE
from training.errors import UserError

FOLDER = CLONE / "deploy/kuberay"
VOLUME, FILES_POD = yaml.safe_load_all((FOLDER / "volume.yaml").read_text())
CLUSTER = yaml.safe_load((FOLDER / "raycluster.yaml").read_text())
JOB = yaml.safe_load((FOLDER / "rayjob.yaml").read_text())
SPECS = {"cluster": CLUSTER["spec"], "job": JOB["spec"]["rayClusterSpec"]}


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod that comes of the manifests: where, and its `spec`."""
    yield "files", FILES_POD["spec"]
    yield "submitter", JOB["spec"]["submitterPodTemplate"]["spec"]
    for name, spec in SPECS.items():
        yield f"{name}: head", spec["headGroupSpec"]["template"]["spec"]
        for group in spec["workerGroupSpecs"]:
            yield f"{name}: {group['groupName']}", group["template"]["spec"]


PODS = dict(pods())
EVERY_POD = pytest.mark.parametrize("pod", PODS.values(), ids=list(PODS))
EITHER = pytest.mark.parametrize("spec", SPECS.values(), ids=list(SPECS))


@pytest.mark.parametrize("manifest", [CLUSTER, JOB], ids=["cluster", "job"])
def test_satisfies_the_schema_of_kuberay(manifest: dict[str, Any]) -> None:
    """KubeRay knows every key, and would not take any."""
    folder = os.environ.get("KUBERAY_CRDS")
    if not folder:
        pytest.skip("needs KUBERAY_CRDS, a folder with KubeRay's custom resource definitions")
    text = (Path(folder) / f"ray.io_{manifest['kind'].lower()}s.yaml").read_text()
    [version] = (v for v in yaml.safe_load(text)["spec"]["versions"] if v["name"] == "v1")
    schema = version["schema"]["openAPIV3Schema"]
    close(schema["properties"]["spec"])
    jsonschema.validate(manifest, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**manifest, "spec": {**manifest["spec"], "submisionMode": "HTTPMode"}}, schema)


def close(schema: Any) -> None:
    """Refuse unknown keys, as `kubectl` does; a number or text is either."""
    if isinstance(schema, dict):
        if schema.get("x-kubernetes-int-or-string"):
            schema.pop("anyOf", None)
            schema["type"] = ["integer", "string"]
        if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
    for inner in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        close(inner)


def test_satisfies_the_schema_of_kubernetes() -> None:
    """The volume and every pod are what the newest known Kubernetes takes, and not just anything."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    wrapped = [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec} for spec in PODS.values()]
    for manifest in (VOLUME, FILES_POD, *wrapped):
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
    wrong = copy.deepcopy(FILES_POD)
    wrong["spec"]["containers"][0]["volumMounts"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


@EVERY_POD
def test_no_pod_is_root(pod: dict[str, Any]) -> None:
    """What the Pod Security Standard `restricted` asks for, and the user of the image."""
    context = pod["securityContext"]
    assert (context["runAsNonRoot"], context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (
        True,
        1000,
        100,
        100,
    )
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert not any("hostPath" in volume for volume in pod.get("volumes", ()))


@EVERY_POD
def test_every_container_says_what_it_needs(pod: dict[str, Any]) -> None:
    """Requests and limits of CPU and memory; the image is one, and yours."""
    for container in pod["containers"]:
        for kind in ("requests", "limits"):
            assert {"cpu", "memory"} <= container["resources"][kind].keys()
        assert container["image"] == "IMAGE"


@EITHER
def test_the_head_trains_nothing_and_gpus_come_when_needed(spec: dict[str, Any]) -> None:
    """No trial on the head; no GPU pod before there is one; the autoscaler's container is as confined as ours."""
    assert spec["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}
    assert spec["enableInTreeAutoscaling"] is True
    [group] = spec["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"]) == (0, 0)
    [worker] = group["template"]["spec"]["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert spec["autoscalerOptions"]["securityContext"] == worker["securityContext"]


@EITHER
def test_tokens_are_asked_for(spec: dict[str, Any]) -> None:
    """The operator makes the token; none is in the manifests."""
    assert spec["authOptions"] == {"mode": "token"}
    pinned = next(line for line in (CLONE / "constraints.txt").read_text().splitlines() if line.startswith("ray=="))
    assert spec["rayVersion"] == pinned.removeprefix("ray==")


@EITHER
def test_a_trial_has_time_to_save(spec: dict[str, Any]) -> None:
    """The hook that sees the trial off ends before the pod does, and names what the image has."""
    pod = spec["workerGroupSpecs"][0]["template"]["spec"]
    python, script, *asked = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert (python, asked[:2]) == ("python", ["now", "--seconds"])
    assert float(asked[2]) + 10 <= pod["terminationGracePeriodSeconds"]
    assert script in (CLONE / "deploy/Dockerfile").read_text()


@EITHER
def test_the_live_page_is_beside_the_head_and_in_its_dashboard(spec: dict[str, Any]) -> None:
    """Its container serves the folder that jobs write to, and Ray knows where."""
    head, watch = spec["headGroupSpec"]["template"]["spec"]["containers"]
    assert f"exec dreamsweep watch /mnt/dreamsweep/runs --port {PORT}" in watch["command"][-1]
    page = f"http://127.0.0.1:{PORT}"
    assert variables_for(page, page, {}).items() <= {said["name"]: said["value"] for said in head["env"]}.items()


@EITHER
def test_all_pods_of_ray_share_the_volume(spec: dict[str, Any]) -> None:
    """Any pod can go on with any trial."""
    templates = [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]
    for template in templates:
        claims = {volume["name"]: volume.get("persistentVolumeClaim") for volume in template["spec"]["volumes"]}
        assert claims["shared"] == {"claimName": VOLUME["metadata"]["name"]}
        for container in template["spec"]["containers"]:
            assert {"name": "shared", "mountPath": "/mnt/dreamsweep"} in container["volumeMounts"]
    assert VOLUME["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_cluster_of_a_job_is_the_cluster_that_stays() -> None:
    """But for its label and the sweep file that is mounted."""
    text = (FOLDER / "rayjob.yaml").read_text().partition("rayClusterSpec:\n")[2]
    ours = [line.removeprefix("  ") for line in text.splitlines() if "name: sweep" not in line]
    theirs = (FOLDER / "raycluster.yaml").read_text().partition("spec:\n")[2].splitlines()
    assert [line.replace("dreamsweep: job", "dreamsweep: cluster") for line in ours] == theirs


def test_a_job_ends() -> None:
    """Its cluster goes with it, a failure is tried again once and no more, and there is a last day."""
    spec = JOB["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert 0 < spec["ttlSecondsAfterFinished"] <= 3600
    assert spec["activeDeadlineSeconds"] > 0
    assert spec["backoffLimit"] == 1
    assert spec["submissionMode"] == "K8sJobMode"


def test_the_entrypoint_is_a_command_of_ours() -> None:
    """`run` takes its options, and a sweep file without `resources` takes the settings."""
    program, verb, sweep_file, *options = shlex.split(JOB["spec"]["entrypoint"])
    assert (program, verb, sweep_file) == ("dreamsweep", "run", "/etc/dreamsweep/sweep.yaml")
    settings = options[: options.index("--out")]
    assert options[len(settings) :] == ["--out", "/mnt/dreamsweep/runs", "--address", "auto"]
    checked = CliRunner().invoke(app, ["check", str(CLONE / "examples/demo/sweep.yaml"), *settings])
    assert checked.exit_code == 0, checked.output
    refused = CliRunner().invoke(app, ["check", str(CLONE / "examples/demo/sweep.yaml"), "--set", "resources.gpus=1"])
    assert isinstance(refused.exception, UserError)


def test_placeholders_are_refused_by_kubernetes() -> None:
    """Neither is a name there, so that none passes in silence; the README's command fills in both."""
    assert VOLUME["spec"]["storageClassName"] == "SHARED"
    readme = (FOLDER / "README.md").read_text()
    assert "s|IMAGE$|" in readme
    assert "s|SHARED$|" in readme
    for manifest in FOLDER.glob("*.yaml"):
        for line in manifest.read_text().splitlines():
            if not line.startswith("#") and ("IMAGE" in line or "SHARED" in line):
                assert line.endswith(("image: IMAGE", "storageClassName: SHARED"))
