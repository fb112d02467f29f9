"""A machine for Ray's cluster launcher that mounts, installs and starts nothing: programs write down their arguments.

Ray's own code makes every command, as `ray up` does; `ssh` hands it to a shell of this machine, `docker exec` to one
whose home is the container's.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
from ray.autoscaler._private import commands
from ray.autoscaler._private.updater import NodeUpdater
from ray.autoscaler._private.util import hash_runtime_conf, prepare_config, validate_config, with_head_node_ip
from ray.autoscaler.node_provider import NodeProvider

CLONE = Path(__file__).parents[2]

ANSWERS = {
    "ssh": 'while [ $# -gt 0 ]; do case $1 in *@*) shift; break ;; esac; shift; done; exec bash -c "$*"',
    "sudo": 'exec "$@"',
    "docker": """
case "$*" in
  *'.State.Running'*) [ -f "$STATE/container" ] && echo true || echo 'no such object' ;;
  *'.Config.Image'*) cat "$STATE/container" ;;
  *'.Mounts'*) cat "$STATE/mounts" ;;
  *'.Config.Env'*) echo "[\\"HOME=$CONTAINER\\"]" ;;
  info*Runtimes*) echo 'map[nvidia:{nvidia-container-runtime}]' ;;
  *'printenv HOME') echo "$CONTAINER" ;;
  exec*) HOME=$CONTAINER exec bash -c "${@: -1}" ;;
  run*)
    mounted=
    while [ $# -gt 0 ]; do
      if [ "$1" = -v ]; then
        mkdir -p "$(dirname "${2#*:}")"
        ln -sfn "${2%%:*}" "${2#*:}"
        mounted="$mounted,{\\"Destination\\": \\"${2#*:}\\"}"
        shift
      fi
      shift
    done
    echo "[${mounted#,}]" > "$STATE/mounts"
    echo "$IMAGE" > "$STATE/container" ;;
esac""",
    "rsync": """
source=${@: -2:1} target=${@: -1}
target=${target#*:}
case $target in '~/'*) target=$MACHINE/${target#'~/'} ;; esac
case $source in */) mkdir -p "$target" ;; *) mkdir -p "$(dirname "$target")" ;; esac
cp -a "${source%/}${source:+$([ -d "$source" ] && echo /.)}" "$target\"""",
    "mountpoint": '[ -f "$STATE/mounted" ]',
    "mount": 'touch "$STATE/mounted"',
    "dpkg": '[ -f "$STATE/installed" ]',
    "apt-get": 'case "$*" in *nfs-common*) touch "$STATE/installed" ;; esac',
    "modinfo": "echo 580.95.05",
    "nvidia-smi": "echo 580.95.05",
    "lspci": "echo '3D controller: NVIDIA Corporation'",
    "id": 'case "$1" in -u) echo 1000 ;; *) echo ubuntu ;; esac',
    "python3": """
case "$*" in
  '-m venv'*) mkdir -p "$3/bin"; ln -sf "$(command -v pip)" "$(command -v ray)" "$(command -v dreamsweep)" "$3/bin" ;;
esac""",
}
"""What a program does besides. `STATE` is a folder for what it must remember, `MACHINE` the machine's home."""
REAL = (
    *("bash", "cat", "chmod", "cp", "dirname", "env", "flock", "grep"),
    *("hostname", "ln", "mkdir", "nohup", "setsid", "sleep", "touch", "uptime"),
)
"""All that a machine has besides, so that nothing on the computer itself is started, stopped or installed."""
SILENT = ["chown", "cloud-init", "dreamsweep", "pip", "python", "ray", "timeout", "usermod"]


class Machine:
    """One machine, and the container on it, below a folder.

    Args:
        folder: everything that it has lies here.
        answers: programs that answer otherwise than `ANSWERS` says.
    """

    def __init__(self, folder: Path, answers: Mapping[str, str] | None = None) -> None:
        self.home, self.container, self.shared = folder / "home", folder / "container", folder / "shared"
        self._laptop = folder.parent / "laptop"
        self.log, self._bin, self._state = folder / "log", folder / "bin", folder / "state"
        for made in (self.home, self.container, self._bin, self._state):
            made.mkdir(parents=True)
        for home in (self.home, self.container):  # a login shell begins with a PATH of its own
            (home / ".bashrc").write_text(f"export PATH={self._bin}\n")
        for program in REAL:
            (self._bin / program).symlink_to(shutil.which(program) or "/missing")
        for program, does in (dict.fromkeys(SILENT, "") | ANSWERS | dict(answers or {})).items():
            self._program(program, does)

    def _program(self, name: str, does: str) -> None:
        path = self._bin / name
        path.write_text(
            "#!/bin/bash\n"
            f"STATE={self._state} CONTAINER={self.container} MACHINE={self.home} IMAGE=image\n"
            f'[ "$HOME" = {self.container} ] || HOME={self.home}\n'
            f'printf "%s\\n" "{name} ${{*//$\'\\n\'/ }}" >> {self.log}\n{does}\n'
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def asked(self, program: str) -> list[str]:
        """What the program was called with, in order."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line.partition(" ")[2] for line in lines if line.split(" ")[0] == program]

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This process is the laptop that reaches this machine, and no other."""
        environment = {
            "PATH": str(self._bin),
            "HOME": str(self._laptop),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
            "RAY_UP_enable_autoscaler_v2": "1",
        }
        mounts = patch("ray.autoscaler.sdk.get_docker_host_mount_location", lambda name: f"{self.home}/mounts/{name}")
        before = Path.cwd()
        os.chdir(CLONE)
        try:
            with patch.dict(os.environ, environment), mounts:
                yield
        finally:
            os.chdir(before)

    def config(self, text: str) -> dict[str, Any]:
        """A launcher file as Ray completes it, with this machine's folders in place of the absolute ones."""
        here = {
            "/mnt/dreamsweep": self.shared,
            "/home/ray": self.container,
            "/tmp/dreamsweep": self.home / "dreamsweep",  # noqa: S108
        }
        for path, ours in here.items():
            text = text.replace(path, str(ours))
        config = prepare_config(yaml.safe_load(text))
        validate_config(config)
        if "image" in config["docker"]:
            config["docker"]["image"] = "image"
        return dict(config)

    def up(self, text: str) -> None:
        """Set this machine up as the head, as `ray up` does once it has been rented.

        Raises:
            click.ClickException: `ray up` failed.
        """
        with self.entered():
            commands.get_or_create_head_node(
                self.config(text), "cluster.yaml", False, False, True, None, _provider=Rented()
            )

    def join(self, text: str) -> int:
        """Set this machine up as a worker, as the head does; the exit code of that."""
        with self.entered():
            config = self.config(text)
            runtime_hash, contents_hash = hash_runtime_conf(config["file_mounts"], None, config)
            provider = Rented()
            provider.create_node({}, {}, 1)
            updater = NodeUpdater(
                node_id="machine",
                provider_config=config["provider"],
                provider=provider,
                auth_config=config["auth"],
                cluster_name=config["cluster_name"],
                file_mounts=config["file_mounts"],
                initialization_commands=with_head_node_ip(config["initialization_commands"], "10.0.0.1"),
                setup_commands=with_head_node_ip(config["worker_setup_commands"], "10.0.0.1"),
                ray_start_commands=with_head_node_ip(config["worker_start_ray_commands"], "10.0.0.1"),
                runtime_hash=runtime_hash,
                file_mounts_contents_hash=contents_hash,
                is_head_node=False,
                node_resources={"CPU": 4, "GPU": 1},
                rsync_options={"rsync_exclude": config["rsync_exclude"]},
                docker_config=config["docker"],
            )
            updater.exitcode = -1
            updater.run()
            return int(updater.exitcode)


class Rented(NodeProvider):  # type: ignore[misc]  # Ray ships no types
    """A cloud of at most one machine, which is there at once."""

    def __init__(self) -> None:
        super().__init__(None, "dreamsweep")
        self.tags: dict[str, Any] | None = None

    def non_terminated_nodes(self, tag_filters: Any) -> list[str]:
        """Its id, once it is rented."""
        return [] if self.tags is None else ["machine"]

    def create_node(self, node_config: Any, tags: dict[str, Any], count: int) -> None:
        """Rent it."""
        self.tags = dict(tags)

    def is_running(self, node_id: str) -> bool:
        """It is."""
        return True

    def is_terminated(self, node_id: str) -> bool:
        """It is not."""
        return False

    def node_tags(self, node_id: str) -> dict[str, Any]:
        """What Ray has noted of it."""
        return dict(self.tags or {})

    def set_node_tags(self, node_id: str, tags: dict[str, Any]) -> None:
        """Note more of it."""
        self.tags = {**(self.tags or {}), **tags}

    def external_ip(self, node_id: str) -> str:
        """An address that only the machine's own `ssh` understands."""
        return "machine"

    def internal_ip(self, node_id: str) -> str:
        """The same."""
        return "machine"
