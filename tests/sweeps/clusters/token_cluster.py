"""A cluster of a head without CPUs and two workers that asks for a token, in a process of its own.

    RAY_AUTH_MODE=token RAY_AUTH_TOKEN=... RAY_TMPDIR=... python -m tests.sweeps.clusters.token_cluster

It prints a line of JSON when the cluster is up and ends with its standard input. RAY_TMPDIR must have a short name: Ray
puts sockets below it.
"""

from __future__ import annotations

import json
import sys

from ray.cluster_utils import Cluster

MEMORY = 150_000_000


def main() -> None:
    """Until standard input ends."""
    head = {"num_cpus": 0, "include_dashboard": True, "object_store_memory": MEMORY}
    ports = {
        "dashboard_port": 0,
        "dashboard_agent_listen_port": None,
    }  # whichever is free: another cluster may run here
    cluster = Cluster(initialize_head=True, head_node_args={**head, **ports})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
        cluster.wait_for_nodes()
        facts = {
            "dashboard": f"http://{cluster.head_node.webui_url}",
            "session": cluster.head_node.get_session_dir_path(),
            "workers": [node.node_id for node in cluster.worker_nodes],
        }
        print(json.dumps(facts), flush=True)  # noqa: T201
        sys.stdin.read()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
