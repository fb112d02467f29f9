"""A PNG without what is too large beside its pixels. Ground: it knows nothing else of the project.

Pillow refuses a PNG whose compressed text or colour profile is larger than a mebibyte, for fear of what inflates to
gigabytes. Printers' profiles and the edit histories of photo editors are larger than that, and are no reason to refuse
a photo.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_CHUNK_BYTES = 2**20
"""What Pillow takes of one inflated chunk."""
MAX_TEXT_BYTES = 2**25
"""Kept of all texts together; Pillow takes twice as much."""
MAX_PROFILE_BYTES = 2**24

TEXT = (b"tEXt", b"zTXt", b"iTXt")


def without_large_chunks(content: bytes) -> tuple[bytes, bytes | None]:
    """The PNG without texts and a profile that are too large, and that profile, if it has no more than 16 MiB.

    Pixels, transparency and everything else stay byte for byte; a file that is no whole PNG comes back as it was.
    """
    kept, profile, text_bytes = [SIGNATURE], None, 0
    for kind, data, whole in _chunks(content):
        if kind in TEXT:
            size = len(_inflated(_compressed_part(kind, data), MAX_CHUNK_BYTES + 1)) + len(data)
            if size > MAX_CHUNK_BYTES or text_bytes + size > MAX_TEXT_BYTES:
                continue
            text_bytes += size
        elif kind == b"iCCP":
            inflated = _inflated(_compressed_part(kind, data), MAX_PROFILE_BYTES + 1)
            if len(inflated) > MAX_CHUNK_BYTES:
                profile = inflated if len(inflated) <= MAX_PROFILE_BYTES else None
                continue
        kept.append(whole)
    return b"".join(kept), profile


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Kind, data and all bytes of each chunk; what is no whole chunk comes last, under no kind."""
    at = len(SIGNATURE)
    while at + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        end = at + 12 + length
        if end > len(content):
            break
        yield content[at + 4 : at + 8], content[at + 8 : end - 4], content[at:end]
        at = end
    yield b"", b"", content[at:]


def _compressed_part(kind: bytes, data: bytes) -> bytes:
    """What of a chunk's data is deflated; empty where nothing is."""
    _, _, rest = data.partition(b"\0")  # keyword or profile name
    if kind == b"tEXt":
        return b""
    if kind == b"iTXt":
        if rest[:1] != b"\1":
            return b""
        return rest[2:].split(b"\0", 2)[-1]  # language, translated keyword
    return rest[1:]  # method


def _inflated(data: bytes, at_most: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, at_most) if data else b""
    except zlib.error:
        return b""  # Pillow passes such a chunk over itself
