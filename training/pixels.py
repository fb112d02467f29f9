"""An opened picture to plain sRGB pixels: depth, transparency and colours as a viewer shows them.

Ground: it knows nothing else of the project but `errors`. Pictures without a colour profile, and those whose profile is
sRGB by whatever name, keep their pixels bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from training.errors import UserError

SAME_COLOURS = 3
"""Levels of 255. A profile that moves no colour by more is sRGB under another name: there are dozens, which differ in
rounding. Display P3 moves some by 116, Adobe RGB by 136."""

_BITS, _PHOTOMETRIC = 258, 262
"""TIFF tags."""
_MODE_OF_SPACE = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}


@dataclass(frozen=True)
class Depth:
    """What a file says of its numbers, read before the picture is turned or copied (a copy no longer knows)."""

    bits: int
    """Of one number."""
    white_is_zero: bool
    """Grey that counts ink, not light, and that Pillow doesn't turn around itself."""

    @classmethod
    def of(cls, image: Image.Image) -> Depth:
        """As an opened file says.

        Raises:
            UserError: fractions or 32-bit numbers, whose scale is not in the file.
        """
        tags: Any = getattr(image, "tag_v2", None)
        if image.mode == "F" or (image.mode == "I" and tags is not None):
            numbers = "floating-point" if image.mode == "F" else "signed or 32-bit"
            raise UserError(f"its pixels are {numbers} numbers, whose white is not known; save it with 8 or 16 bits")
        if tags is None:
            return cls(16, white_is_zero=False)
        deep = image.mode.startswith("I;16")
        return cls(int(tags.get(_BITS, (8,))[0]), white_is_zero=deep and tags.get(_PHOTOMETRIC) == 0)


def srgb_pixels(image: Image.Image, depth: Depth, profile: bytes | None) -> Image.Image:
    """RGB pixels and nothing else.

    Args:
        image: upright, in any mode.
        depth: of the opened file.
        profile: its ICC profile; one that is broken or of another kind of picture is passed over, as viewers do.
    """
    image = _in_8_bits(image, depth)
    if image.has_transparency_data:
        colours, alpha = _apart(image)
        colours = _to_srgb(colours, profile)
        colours.putalpha(alpha)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours).convert("RGB")
    else:
        image = _to_srgb(image, profile)
    return Image.frombytes("RGB", image.size, image.tobytes())


def _in_8_bits(image: Image.Image, depth: Depth) -> Image.Image:
    """Grey of more bits a pixel loses its lower ones; a plain conversion would clip at 255."""
    if not image.mode.startswith("I"):
        return _with_8_bit_key(image)
    values = np.asarray(image).astype(np.uint32)
    grey = (values >> (depth.bits - 8)).clip(0, 255).astype(np.uint8)
    if depth.white_is_zero:
        grey = 255 - grey
    plain = Image.fromarray(grey)
    transparent = image.info.get("transparency")
    if transparent is not None:
        plain.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return plain


def _with_8_bit_key(image: Image.Image) -> Image.Image:
    """Pillow reads 16 bits a channel as 8, but leaves the colour that is to be transparent in 16."""
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return image


def _apart(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    """Colours (RGB, or L of a grey picture) and alpha (L)."""
    image = image.convert("LA" if image.mode in ("LA", "La") else "RGBA")
    alpha = image.getchannel("A")
    return image.convert("L" if image.mode == "LA" else "RGB"), alpha


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if image.mode == "LAB":
        return _applied(_lab_to_srgb(), image)
    if image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    if profile:
        mode, transform = _transform(profile)
        if mode == "L" and image.mode == "RGB":  # a palette of greys
            image = image.convert("L")
        if transform is not None and mode == image.mode:
            return _applied(transform, image)
    return image.convert("RGB")


def _applied(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None, "only a transform in place gives None"
    return converted


@lru_cache(maxsize=16)  # photos of one camera share their profile
def _transform(profile: bytes) -> tuple[str | None, ImageCms.ImageCmsTransform | None]:
    """The mode of picture that a profile is for, and the way to sRGB: None where there is nothing to do or none."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        mode = _MODE_OF_SPACE.get(source.profile.xcolor_space.strip())
        if mode is None:
            return None, None
        transform = ImageCms.buildTransform(
            source,
            _srgb(),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None, None
    return mode, transform if mode == "CMYK" or _moves_colours(transform, mode) else None


def _moves_colours(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Does it move any of a lattice of colours by more than `SAME_COLOURS`?"""
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    if mode == "L":
        lattice = Image.fromarray(levels[None])
    else:
        lattice = Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3))
    before = np.asarray(lattice.convert("RGB"), dtype=np.int16)
    after = np.asarray(_applied(transform, lattice), dtype=np.int16)
    return bool(np.abs(after - before).max() > SAME_COLOURS)


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@cache
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    return ImageCms.buildTransform(lab, _srgb(), "LAB", "RGB", renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC)
