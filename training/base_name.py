"""What a base model is called: a name or path, and what is to be made of it. Ground: it knows nothing of the project.

Everything that loads a base model, remembers one or compares two knows it by one text: the name as it is, or, with
options, as `owner/model?revision=...&variant=fp16&clip_skip=2`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from urllib.parse import parse_qsl, urlencode

_OPTIONS = re.compile(r"(?P<name>.+)\?(?P<options>(?:(?:revision|variant|clip_skip)=[^&?/\\]+&?)+)", re.DOTALL)


@dataclass(frozen=True)
class BaseName:
    """A base model and how it is taken."""

    name: str
    """Hub id, folder or file."""
    revision: str | None = None
    """Of a hub id: branch, tag or commit."""
    variant: str | None = None
    """Of a hub id: which of its weights, `fp16` for one."""
    clip_skip: int = 1
    """From which layer of the text encoder, counted from the last one, prompts are read: A1111's and kohya's count. 1
    reads from the last, as diffusers' `clip_skip=None` does; 2 from the one before, as its `clip_skip=1`."""

    def __str__(self) -> str:
        """The text that `parse_base_name` reads."""
        given = {"revision": self.revision, "variant": self.variant}
        options = {key: value for key, value in given.items() if value is not None}
        if self.clip_skip != 1:
            options["clip_skip"] = str(self.clip_skip)
        return f"{self.name}?{urlencode(options)}" if options else self.name


@cache
def parse_base_name(text: str) -> BaseName:
    """What `str` of a `BaseName` says; any other text is a name alone."""
    match = _OPTIONS.fullmatch(text)
    if match is None:
        return BaseName(text)
    options = dict(parse_qsl(match["options"]))
    skip = options.get("clip_skip", "1")
    if not skip.isdecimal():
        return BaseName(text)
    return BaseName(match["name"], options.get("revision"), options.get("variant"), int(skip))
