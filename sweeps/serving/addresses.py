"""What the path, the query and the Host header of a request say."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import SplitResult, parse_qs, unquote

Segments = Sequence[str]
Query = dict[str, str]


def segments_of(target: SplitResult) -> tuple[str, ...]:
    """The decoded parts of a path; the last is empty where it ends in a slash.

    Raises:
        ValueError: it is no path of this server, or a part of it would be something else as a path of a disk.
    """
    if target.scheme or target.netloc or not target.path.startswith("/"):
        raise ValueError(target)
    segments = tuple(unquote(part, errors="surrogateescape") for part in target.path[1:].split("/"))
    if any(part in (".", "..") or set(part) & set("/\\\0") for part in segments):
        raise ValueError(target)
    return segments


def query_of(target: SplitResult) -> Query:
    """The last value of each name.

    Raises:
        ValueError: there are too many.
    """
    found = parse_qs(target.query, keep_blank_values=True, max_num_fields=50)
    return {name: values[-1] for name, values in found.items()}


def is_this_machine(host: str) -> bool:
    """Whether a Host header names this machine in a way that no other site can, with any port."""
    name, _, port = host.rpartition(":")
    if not name or not port.isdecimal():  # no port
        name = host
    if name.lower() == "localhost":
        return True
    try:
        return ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def is_same(said: str, token: str) -> bool:
    """Compared in the same time whatever is said."""
    return hmac.compare_digest(said.encode("utf-8", "surrogateescape"), token.encode())
