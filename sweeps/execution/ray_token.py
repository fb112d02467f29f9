"""Ray's token, looked at before Ray is asked.

A cluster with `RAY_AUTH_MODE=token` refuses a missing or wrong token at once. Ray takes that answer for a cluster that
is still starting, asks again for a minute, fills the terminal and in the end names no token. So we ask first, once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import grpc
from ray._private.services import (
    canonicalize_bootstrap_address,
)  # what `auto` stands for; Ray has no public name for it

from training.errors import UserError

SECONDS_TO_ANSWER = 20.0
"""How long a cluster may take to answer; Ray itself gives one that starts as long."""
_QUESTION = "/ray.rpc.NodeInfoGcsService/CheckAlive"
TOKEN_SOURCES = "RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token"  # noqa: S105 -- names
_LEFT_TO_RAY = ("RAY_USE_TLS", "RAY_ENABLE_K8S_TOKEN_AUTH")
_NO_ANSWER = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})


def check_cluster_answers(address: str, seconds: float = SECONDS_TO_ANSWER) -> None:
    """Ask the cluster whether it takes our token.

    Args:
        address: `auto` or `host:port`; a `ray://` address is left to Ray, and so are TLS and Kubernetes' own tokens.
        seconds: how long it may take to answer.

    Raises:
        UserError: there is no token where Ray looks for one, the cluster refuses it, or nothing answers.
    """
    if "://" in address or any(os.environ.get(name, "0").lower() in ("1", "true") for name in _LEFT_TO_RAY):
        return
    token = ray_token(os.environ)
    try:
        place = canonicalize_bootstrap_address(address)
    except ValueError as error:
        raise UserError(f"--address {address}: must be auto or host:port: {error}") from None
    if place is None:  # `auto` where nothing runs: Ray says so itself, at once
        return
    code = _ask(place, token, seconds)
    if code == grpc.StatusCode.UNAUTHENTICATED:
        what = "refuses this machine's token" if token else "asks for a token, and this machine has none"
        raise UserError(f"--address {address}: the cluster at {place} {what}; its own must stand in {TOKEN_SOURCES}")
    if code in _NO_ANSWER:
        raise UserError(f"--address {address}: Ray must answer there, and nothing at {place} did for {seconds:g} s")


def open_token_file(environment: Mapping[str, str]) -> str | None:
    """A sentence about the token's file where other users of this machine can read it, else None."""
    path = _token_file(environment)
    try:
        mode = path.stat().st_mode & 0o777
    except OSError:
        return None
    if "RAY_AUTH_TOKEN" in environment or not mode & 0o077:
        return None
    return f"{path}: other users of this machine may read the cluster's token (mode {mode:04o}); chmod 600 {path}"


def where_the_token_is(environment: Mapping[str, str]) -> str:
    """For whom the dashboard asks for it."""
    if "RAY_AUTH_TOKEN" in environment:
        return "in RAY_AUTH_TOKEN"
    return f"in {_token_file(environment)}"


def _ask(place: str, token: str | None, seconds: float) -> grpc.StatusCode:
    with grpc.insecure_channel(place) as channel:
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        try:
            channel.unary_unary(_QUESTION)(b"", metadata=metadata, timeout=seconds, wait_for_ready=True)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK


def ray_token(environment: Mapping[str, str]) -> str | None:
    """The token that Ray will send, found where and as Ray finds it; None where it will send none."""
    mode = environment.get("RAY_AUTH_MODE", "").lower()
    if mode == "disabled":
        return None
    token = environment.get("RAY_AUTH_TOKEN", "").strip()
    if not token:
        try:
            token = _token_file(environment).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            token = ""
    if token or (mode != "token" and "RAY_AUTH_TOKEN_PATH" not in environment):
        return token or None
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    found = f"{named} cannot be read or is empty" if named else "found none"
    raise UserError(f"RAY_AUTH_MODE: token asks for a token in {TOKEN_SOURCES}; {found}")


def _token_file(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
