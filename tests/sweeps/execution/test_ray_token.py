"""A missing or wrong token is named at once; what workers are sent holds our code and no secret. No Ray session."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from sweeps.demo import WHEEL_DATA
from sweeps.execution import session
from sweeps.execution.ray_token import check_cluster_answers, open_token_file, where_the_token_is
from training.errors import UserError

TOKEN = "0123456789abcdef0123456789abcdef"  # noqa: S105 -- of a server that lives as long as a test


class TokenServer(grpc.GenericRpcHandler):
    """Answers every question as a head with token authentication does."""

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """Take a call with the token, refuse any other."""
        takes = ("authorization", f"Bearer {TOKEN}") in [(key, value) for key, value in call.invocation_metadata]

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            if not takes:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken: missing or incorrect")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """Address of a server that wants `TOKEN`."""
    server = grpc.server(ThreadPoolExecutor(1), handlers=(TokenServer(),))
    port = server.add_insecure_port("0.0.0.0:0")  # Ray reads 127.0.0.1 as this machine's own address
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without any token."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("place", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token"])
@pytest.mark.parametrize("mode", ["token", None])
def test_the_right_token_is_taken_wherever_it_stands(
    head: str, home: Path, monkeypatch: pytest.MonkeyPatch, place: str, mode: str | None
) -> None:
    """The three places in which Ray looks, whether or not the mode is said."""
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    if place == "RAY_AUTH_TOKEN":
        monkeypatch.setenv(place, TOKEN)
    else:
        file = home / ".ray" / "auth_token" if place.startswith("~") else home / "elsewhere"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"{TOKEN}\n")
        if not place.startswith("~"):
            monkeypatch.setenv(place, str(file))
    check_cluster_answers(head)


@pytest.mark.parametrize(
    ("environment", "law"),
    [
        ({}, "asks for a token, and this machine has none"),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": TOKEN}, "asks for a token, and this machine has none"),
        ({"RAY_AUTH_TOKEN": "wrong"}, "refuses this machine's token"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong"}, "refuses this machine's token"),
        ({"RAY_AUTH_MODE": "token"}, "asks for a token .*found none"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": ""}, "asks for a token .*found none"),
        ({"RAY_AUTH_TOKEN_PATH": "/nowhere/token"}, "/nowhere/token cannot be read"),
    ],
)
def test_a_missing_or_wrong_token_is_named(
    head: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], environment: dict[str, str], law: str
) -> None:
    """One sentence that says what is wrong and where the token belongs; nothing else on the terminal."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=law) as refused:
        session._connect(head, None, Path("runs/ada"))
    assert "~/.ray/auth_token" in str(refused.value)
    assert TOKEN not in str(refused.value)
    assert "gcs_client" not in capfd.readouterr().err


def test_a_cluster_that_does_not_answer_is_given_a_while_and_no_more() -> None:
    """Where Ray alone would ask for minutes."""
    with pytest.raises(UserError, match=r"nothing at .*:9 did for 0.2 s"):
        check_cluster_answers("127.0.0.1:9", seconds=0.2)
    with pytest.raises(UserError, match=r"--address hello: must be auto or host:port"):
        check_cluster_answers("hello")


def test_a_token_that_others_may_read_is_named(home: Path) -> None:
    """Ray writes it so, with the usual umask."""
    file = home / ".ray" / "auth_token"
    assert open_token_file({}) is None
    file.parent.mkdir()
    file.write_text(TOKEN)
    file.chmod(0o644)
    assert re.search(rf"{file}: other users .*0644.*chmod 600 {file}", str(open_token_file({})))
    assert open_token_file({"RAY_AUTH_TOKEN": TOKEN}) is None
    assert where_the_token_is({}) == f"in {file}"
    assert where_the_token_is({"RAY_AUTH_TOKEN": TOKEN}) == "in RAY_AUTH_TOKEN"
    file.chmod(0o600)
    assert open_token_file({}) is None


def test_workers_are_sent_our_code_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray shows a runtime environment in clear: it never holds a token, nor the demo that a wheel brings along."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    env = session.our_runtime_env()
    assert env == {"py_modules": session.our_packages()}
    assert "secret" not in str(env)
    (tmp_path / "sweeps" / WHEEL_DATA).mkdir(parents=True)
    monkeypatch.setattr(session, "our_packages", lambda: [str(tmp_path / "sweeps")])
    assert session.our_runtime_env() == {"py_modules": [str(tmp_path / "sweeps")], "excludes": [f"/{WHEEL_DATA}"]}


def test_ray_leaves_out_what_is_excluded(tmp_path: Path) -> None:
    """The pattern means the folder of that name directly in a package, to Ray's own packer."""
    from ray._private.runtime_env.packaging import _get_excludes

    is_left_out = _get_excludes(tmp_path, [f"/{WHEEL_DATA}"])
    assert is_left_out(tmp_path / WHEEL_DATA)
    assert not is_left_out(tmp_path / "demo.py")
