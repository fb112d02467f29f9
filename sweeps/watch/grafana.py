"""What Ray's dashboard asks of a Grafana and a Prometheus, answered so that it shows the live page.

Of Ray 2.60: its Metrics tab is a frame around `<grafana>/d/<uid>/?theme=...`, its Overview page has two frames around
`<grafana>/d-solo/<uid>/...?panelId=24|41&theme=...`, and it shows either only while `<grafana>/api/health` says that a
database is ok and `<prometheus>/api/v1/query` answers. The dashboard's process asks both hosts, the browser the third;
Ray reads all three from the environment when it starts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from sweeps.serving.messages import Response, as_json

GRAFANA_HOST, GRAFANA_IFRAME_HOST, PROMETHEUS_HOST = (
    "RAY_GRAFANA_HOST",
    "RAY_GRAFANA_IFRAME_HOST",
    "RAY_PROMETHEUS_HOST",
)


def variables_for(root: str, address: str, environment: Mapping[str, str]) -> dict[str, str]:
    """What Ray's environment must have besides for its dashboard to show the page at `address`.

    Nothing where somebody has named a Grafana: theirs is shown. A Prometheus that was named stays. Ray writes what it
    asks itself into files that all users of the machine can read, so those two are without the token; the third it
    tells those alone who have its own token.

    Args:
        root: of the page's server, without a slash at its end.
        address: what addresses of pages begin with, the token included.
        environment: as it is.
    """
    if GRAFANA_HOST in environment:
        return {}
    wanted = {GRAFANA_HOST: root, GRAFANA_IFRAME_HOST: address, PROMETHEUS_HOST: root}
    return {name: value for name, value in wanted.items() if name not in environment}


def grafana_health() -> Response:
    """Its `/api/health`."""
    return as_json({"database": "ok", "version": "none: this is dreamsweep's live page", "commit": ""})


def prometheus_answer(query: str) -> Response:
    """Its `/api/v1/query`: the one number by which Ray looks whether it is there, and no data else."""
    result = [{"metric": {}, "value": [time.time(), "1"]}] if query.replace(" ", "") == "vector(1)" else []
    return as_json({"status": "success", "data": {"resultType": "vector", "result": result}})
