"""Names of files as text: for a record, and for a line that people read. Ground: it knows nothing else of the project.

A name on disk is bytes. It may hold a line end, an escape sequence, or an encoding other than UTF-8 (which Python keeps
as lone surrogates that no file in UTF-8 can hold).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import PurePath

MAX_LISTED = 10
"""Names in one line; the others are counted."""


def name_text(name: str | PurePath) -> str:
    r"""The name as text that JSON, CSV and HTML can hold: as it is; bytes that are no UTF-8 as `\xe9`."""
    return os.fsencode(str(name)).decode("utf-8", "backslashreplace")


def shown(text: str | PurePath) -> str:
    r"""The text on one line of a terminal: what has no shape of its own is written as an escape, `\n` or `\x1b`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name_text(text))


def listed(names: Sequence[str]) -> str:
    """Some names in one line: `a.png, b.png and 12 more`."""
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(map(shown, names[:MAX_LISTED])) + more
