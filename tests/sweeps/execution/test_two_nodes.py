"""A sweep submitted as a Ray job to a cluster of a head without CPUs and two workers (a minute or two)."""

from __future__ import annotations

import asyncio
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster
from ray.job_submission import JobStatus, JobSubmissionClient
from ray.util.state import list_actors

from sweeps.results.results import read_results
from tests.sweeps.tiny_sweep import build_face_encoder, sweep_mapping, write_sweep

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that holds no trials, as in cluster.yaml, and two workers of one CPU."""
    head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": 0, "object_store_memory": 150_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(num_cpus=1, object_store_memory=150_000_000)
        cluster.add_node(num_cpus=1, object_store_memory=150_000_000)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


def test_a_submitted_sweep_uses_both_workers(
    cluster: Cluster, tmp_path: Path, tiny_base: str, tiny_clip: str, photos: Path
) -> None:
    """`ray job submit -- dreamsweep run ... --address auto` scores every trial, on both workers, none on the head."""
    mapping = sweep_mapping(tiny_base, photos, tiny_clip, build_face_encoder(tmp_path / "face"))
    sweep = write_sweep(tmp_path / "tiny.yaml", mapping)
    command = [str(Path(sys.executable).with_name("dreamsweep")), "run", str(sweep)]
    entrypoint = shlex.join([*command, "--out", str(tmp_path / "runs"), "--address", "auto"])

    dashboard = f"http://{cluster.head_node.webui_url}"
    client = JobSubmissionClient(dashboard)
    job = _submit(client, entrypoint)
    log = "".join(_lines_until_the_end(client, job))

    assert client.get_job_status(job) == JobStatus.SUCCEEDED, log
    results = read_results(tmp_path / "runs" / "tiny")
    assert results.num_by_status == {"finished": 4}, log
    trials = list_actors(address=dashboard, filters=[("class_name", "=", "SweepTrial")], detail=True)
    workers = {node.node_id for node in cluster.worker_nodes}
    assert {actor.node_id for actor in trials} == workers
    assert {actor.repr_name for actor in trials} >= {"lora_r1_lr1e-3", "dreambooth_lr1e-5"}


def _submit(client: JobSubmissionClient, entrypoint: str, deadline_seconds: float = 300) -> str:
    """Submit a job as soon as the head's agent, which starts after the head itself, takes one."""
    give_up = time.monotonic() + deadline_seconds
    while True:
        try:
            return client.submit_job(entrypoint=entrypoint)
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > give_up:
                raise
            time.sleep(1)  # between questions: nothing announces the agent


def _lines_until_the_end(client: JobSubmissionClient, job: str) -> Iterator[str]:
    """The job's log as it comes, which is also how to wait for its end."""
    lines = client.tail_job_logs(job)

    async def next_lines() -> str:
        return await anext(lines, "")

    with asyncio.Runner() as runner:
        while text := runner.run(next_lines()):
            yield text
