"""How fast a file comes through a dashboard, and what that takes: a cluster on this machine, random bytes.

python -m tests.sweeps.clusters.transport     a minute; prints a table
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sweeps.clusters.dashboard import Dashboard, start_there

MEGABYTE = 10**6
SIZES = (50, 500)


def main() -> None:
    """Start a cluster, fetch, print."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with tempfile.TemporaryDirectory(prefix="ds") as short:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.sweeps.clusters.token_cluster"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "RAY_TMPDIR": short},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            said = json.loads(process.stdout.readline())
            measure(Dashboard(said["dashboard"]), Path(said["session"]) / "logs", Path(short))
        finally:
            process.stdin.close()
            process.wait()


def measure(dashboard: Dashboard, logs: Path, folder: Path) -> None:
    """A file of each size, by a link in the head's log folder."""
    (folder / "parcel").mkdir()
    start_there(
        dashboard, "probe", "checks", {"versions": {}, "out": "/", "storage": None, "models": []}, folder / "parcel", {}
    )
    node = str(dashboard.wait("probe").driver_node_id)
    print("| file | seconds | MB/s | memory of the one who fetches |\n|---|---|---|---|")  # noqa: T201
    for size in SIZES:
        file = folder / f"{size}.bin"
        with file.open("wb") as out:
            for _ in range(size):
                out.write(os.urandom(MEGABYTE))
        (logs / file.name).symlink_to(file)
        began, digest = time.perf_counter(), hashlib.sha256()
        for block in dashboard.stream_file(node, file.name):
            digest.update(block)
        seconds = time.perf_counter() - began
        with file.open("rb") as stream:
            assert digest.hexdigest() == hashlib.file_digest(stream, "sha256").hexdigest()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        print(f"| {size} MB | {seconds:.1f} | {size / seconds:.0f} | {memory:.0f} MB |")  # noqa: T201


if __name__ == "__main__":
    main()
