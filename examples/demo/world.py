"""A drawn world of characters: who someone is never stands in a caption, how they are shown always does.

`draw_identity` makes a person, `draw_shot` a way of showing people, `paint` a picture and `write_caption` its text.
All of it follows the random generator that is passed in, so a seed names a world. Pictures are 64 px squares, painted
at three times that size and reduced.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = 64
"""Side of a picture in pixels."""
_OVERSAMPLING = 3
_BLUR = 0.45  # pixels; as soft as a photo: hard edges would cost a small VAE most of its capacity

Colour = tuple[int, int, int]
Points = Sequence[tuple[float, float]]
Box = tuple[float, float, float, float]

COLOURS: dict[str, Colour] = {
    "red": (208, 42, 46),
    "yellow": (244, 204, 50),
    "green": (58, 158, 74),
    "blue": (50, 96, 206),
    "purple": (128, 62, 176),
    "pink": (246, 142, 184),
    "white": (242, 242, 244),
    "black": (40, 40, 46),
}
GARMENTS = ("hoodie", "t-shirt", "suit", "dress", "sweater")
EXPRESSIONS = ("calm", "smiling", "sad", "surprised", "angry")
ACCESSORIES: dict[str, str] = {
    "none": "",
    "glasses": "with glasses",
    "sunglasses": "with sunglasses",
    "hat": "with a hat",
    "headphones": "with headphones",
    "crown": "with a crown",
}
PLACES: dict[str, str] = {
    "beach": "at the beach",
    "forest": "in a forest",
    "city": "in a city",
    "snow": "in the snow",
    "desert": "in the desert",
    "garden": "in a garden",
    "library": "in a library",
    "space": "in space",
    "studio": "in a studio",
    "wall": "at a brick wall",
}
PLACE_ALONE: dict[str, str] = {
    "beach": "a beach",
    "forest": "a forest",
    "city": "a city",
    "snow": "the snow",
    "desert": "a desert",
    "garden": "a garden",
    "library": "a library",
    "space": "space",
    "studio": "a studio",
    "wall": "a brick wall",
}
FRAMINGS: dict[str, str] = {"portrait": "photo", "close-up": "close-up photo"}

HAIR_STYLES = (
    "bald", "buzz", "short", "parted", "spiky", "mohawk", "bun", "bob", "long", "afro", "pigtails", "fringe",
)  # fmt: skip
HAIR_COLOURS: tuple[Colour, ...] = (
    (30, 24, 26), (74, 46, 30), (124, 76, 40), (176, 122, 60), (232, 196, 110),
    (190, 78, 36), (166, 166, 172), (70, 110, 200), (60, 150, 110), (214, 90, 160),
)  # fmt: skip
EYE_COLOURS: tuple[Colour, ...] = ((70, 42, 24), (60, 120, 200), (60, 140, 70), (130, 130, 140), (190, 120, 30))
BEARDS = ("none", "moustache", "goatee", "beard")
MARKS = ("none", "freckles", "mole", "blush")


@dataclass(frozen=True)
class Identity:
    """Who someone is. Lengths are in units of half a head's height; none of this is ever written in a caption."""

    skin_tone: float  # 0 light .. 1 dark
    skin_warmth: float  # -1 pink .. 1 golden
    hair_style: int
    hair_colour: Colour
    eye_colour: int
    beard: int
    mark: int
    face_width: float
    jaw_taper: float
    squareness: float
    eye_size: float
    eye_spacing: float
    eye_height: float
    eye_slant: float
    brow_thickness: float
    brow_tilt: float
    nose_length: float
    nose_width: float
    mouth_width: float
    lip_redness: float
    ear_size: float
    hair_volume: float

    @property
    def skin(self) -> Colour:
        """Skin colour, from its tone and warmth."""
        light, dark = np.array([255, 222, 196.0]), np.array([92, 56, 40.0])
        rgb = light + (dark - light) * self.skin_tone + np.array([4, 4, -14.0]) * self.skin_warmth
        return _colour(rgb)

    def vector(self) -> np.ndarray:
        """The person as numbers, float32 [num_identity_values()]: continuous ones within [-1, 1], kinds one-hot."""
        numbers = [_to_unit(getattr(self, name), low, high) for name, (low, high) in CONTINUOUS.items()]
        numbers += [channel / 127.5 - 1 for channel in self.hair_colour]
        kinds = [
            np.eye(len(HAIR_STYLES))[self.hair_style],
            np.eye(len(EYE_COLOURS))[self.eye_colour],
            np.eye(len(BEARDS))[self.beard],
            np.eye(len(MARKS))[self.mark],
        ]
        return np.concatenate([np.array(numbers), *kinds]).astype(np.float32)


CONTINUOUS: dict[str, tuple[float, float]] = {
    "skin_tone": (0.0, 1.0),
    "skin_warmth": (-1.0, 1.0),
    "face_width": (0.70, 0.98),
    "jaw_taper": (0.0, 0.45),
    "squareness": (0.0, 0.5),
    "eye_size": (0.15, 0.25),
    "eye_spacing": (0.30, 0.44),
    "eye_height": (-0.16, 0.06),
    "eye_slant": (-0.25, 0.25),
    "brow_thickness": (0.04, 0.13),
    "brow_tilt": (-0.22, 0.22),
    "nose_length": (0.14, 0.36),
    "nose_width": (0.08, 0.22),
    "mouth_width": (0.24, 0.42),
    "lip_redness": (0.0, 1.0),
    "ear_size": (0.10, 0.28),
    "hair_volume": (0.0, 1.0),
}
"""Ranges of the continuous traits, drawn uniformly."""


def num_identity_values() -> int:
    """Length of `Identity.vector()`."""
    return len(CONTINUOUS) + 3 + len(HAIR_STYLES) + len(EYE_COLOURS) + len(BEARDS) + len(MARKS)


@dataclass(frozen=True)
class Shot:
    """How a picture shows someone. The words of it are written in captions, the pose is not."""

    garment: str
    colour: str
    expression: str
    accessory: str
    place: str
    framing: str
    dx: float  # pixels
    dy: float  # pixels
    zoom: float
    tilt: float  # radians
    gaze: float  # -1 left .. 1 right
    scene: int  # seed of the place's details


CAPTIONED = ("garment", "colour", "expression", "accessory", "place", "framing")
CHOICES: dict[str, tuple[str, ...]] = {
    "garment": GARMENTS,
    "colour": tuple(COLOURS),
    "expression": EXPRESSIONS,
    "accessory": tuple(ACCESSORIES),
    "place": tuple(PLACES),
    "framing": tuple(FRAMINGS),
}


def draw_identity(rng: np.random.Generator) -> Identity:
    """A new person."""
    base = np.array(HAIR_COLOURS[rng.integers(len(HAIR_COLOURS))])
    return Identity(
        hair_style=int(rng.integers(len(HAIR_STYLES))),
        hair_colour=_colour(base + rng.normal(0, 12, 3)),
        eye_colour=int(rng.integers(len(EYE_COLOURS))),
        beard=int(rng.choice(len(BEARDS), p=[0.58, 0.14, 0.12, 0.16])),
        mark=int(rng.choice(len(MARKS), p=[0.5, 0.2, 0.15, 0.15])),
        **{name: float(rng.uniform(low, high)) for name, (low, high) in CONTINUOUS.items()},
    )


def draw_shot(rng: np.random.Generator, **fixed: str) -> Shot:
    """A way of showing someone; `fixed` sets some of the captioned attributes."""
    words = {name: str(rng.choice(choices)) for name, choices in CHOICES.items()}
    if rng.random() < 0.25:  # faces without an accessory are the most telling ones
        words["accessory"] = "none"
    return Shot(
        **(words | fixed),
        dx=float(rng.uniform(-3, 3)),
        dy=float(rng.uniform(-1.5, 1.5)),
        zoom=float(rng.uniform(0.95, 1.06)),
        tilt=float(rng.uniform(-0.1, 0.1)),
        gaze=float(rng.uniform(-1, 1)),
        scene=int(rng.integers(2**31)),
    )


def write_caption(shot: Shot, name: str | None = None, leave_out: Sequence[str] = ()) -> str:
    """The shot in words: "photo of a person wearing a red hoodie, smiling, with glasses, at the beach".

    Args:
        shot: what the picture shows.
        name: a name for the person, such as a rare token; "a person" without one.
        leave_out: of `CAPTIONED`, what the caption keeps silent about. A garment and its colour go together.
    """
    framing = "photo" if "framing" in leave_out else FRAMINGS[shot.framing]
    text = f"{framing} of {name or 'a'} person"
    if "garment" not in leave_out:
        text += f" wearing a {shot.colour} {shot.garment}"
    rest = {
        "expression": shot.expression,
        "accessory": ACCESSORIES[shot.accessory],
        "place": PLACES[shot.place],
    }
    return ", ".join([text, *(words for kind, words in rest.items() if words and kind not in leave_out)])


def write_place_caption(place: str) -> str:
    """The caption of a picture that shows a place and nobody in it."""
    return f"photo of {PLACE_ALONE[place]}"


def paint(identity: Identity | None, shot: Shot, scale: int = 1) -> Image.Image:
    """The picture, RGB [64 * scale, 64 * scale]; without an identity only the place."""
    canvas = _Canvas(scale)
    _PLACE_PAINTERS[shot.place](canvas, np.random.default_rng(shot.scene))
    if identity is not None:
        _Figure(canvas, identity, shot).paint()
    return canvas.picture()


def face_box(identity: Identity, shot: Shot) -> Box:
    """Where the face is: x0, y0, x1, y1 in pixels."""
    x, y, radius = _head(shot)
    half_width = radius * (identity.face_width + 0.06)
    return x - half_width, y - radius, x + half_width, y + radius


def _head(shot: Shot) -> tuple[float, float, float]:
    """Centre and half height of the head in pixels."""
    radius = {"portrait": 14.5, "close-up": 19.0}[shot.framing] * shot.zoom
    centre_y = {"portrait": 28.0, "close-up": 28.5}[shot.framing]
    return SIZE / 2 + shot.dx, centre_y + shot.dy, radius


def _colour(rgb: np.ndarray) -> Colour:
    red, green, blue = np.clip(np.round(rgb), 0, 255).astype(int).tolist()
    return red, green, blue


def _shade(colour: Colour, factor: float) -> Colour:
    """Darker below 1; above 1 lighter, towards white."""
    rgb = np.array(colour, dtype=float)
    return _colour(rgb * factor if factor <= 1 else rgb + (255 - rgb) * (factor - 1))


def _mix(first: Colour, second: Colour, share: float) -> Colour:
    return _colour(np.array(first) * (1 - share) + np.array(second) * share)


def _to_unit(value: float, low: float, high: float) -> float:
    return 2 * (value - low) / (high - low) - 1


class _Canvas:
    """Polygons in picture pixels, painted large and reduced at the end."""

    def __init__(self, scale: int) -> None:
        self.scale, self.zoom = scale, scale * _OVERSAMPLING
        self.image = Image.new("RGB", (SIZE * self.zoom, SIZE * self.zoom))
        self.draw = ImageDraw.Draw(self.image)

    def polygon(self, points: Points, colour: Colour) -> None:
        self.draw.polygon([(x * self.zoom, y * self.zoom) for x, y in points], fill=colour)

    def rectangle(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        zoom = self.zoom
        self.draw.ellipse([(x - rx) * zoom, (y - ry) * zoom, (x + rx) * zoom, (y + ry) * zoom], fill=colour)

    def gradient(self, top: Colour, bottom: Colour, y0: float = 0, y1: float = SIZE) -> None:
        bands = 16
        for band in range(bands):
            share = band / (bands - 1)
            start = y0 + (y1 - y0) * band / bands
            self.rectangle(0, start, SIZE, y1, _mix(top, bottom, share))

    def picture(self) -> Image.Image:
        return self.image.reduce(_OVERSAMPLING).filter(ImageFilter.GaussianBlur(_BLUR * self.scale))


# --- people


class _Figure:
    """One person in one shot. Head shapes are given in units of half a head's height, y down, tilted with the head."""

    def __init__(self, canvas: _Canvas, identity: Identity, shot: Shot) -> None:
        self.canvas, self.who, self.shot = canvas, identity, shot
        self.x, self.y, self.radius = _head(shot)
        self.cos, self.sin = math.cos(shot.tilt), math.sin(shot.tilt)
        self.skin = identity.skin
        self.line = _shade(self.skin, 0.62)
        self.hair = identity.hair_colour
        self.garment = COLOURS[shot.colour]

    def paint(self) -> None:
        self.hair_behind()
        self.body()
        self.ears()
        self.face()
        self.beard()
        self.marks()
        self.nose()
        self.eyes()
        self.mouth()
        self.hair_in_front()
        self.brows()
        self.accessory()

    # --- shapes

    def place(self, u: float, v: float) -> tuple[float, float]:
        return self.x + self.radius * (u * self.cos - v * self.sin), self.y + self.radius * (
            u * self.sin + v * self.cos
        )

    def polygon(self, points: Points, colour: Colour) -> None:
        self.canvas.polygon([self.place(u, v) for u, v in points], colour)

    def ellipse(self, u: float, v: float, ru: float, rv: float, colour: Colour, slant: float = 0.0) -> None:
        angles = np.linspace(0, 2 * math.pi, 20, endpoint=False)
        c, s = math.cos(slant), math.sin(slant)
        points = [
            (u + ru * math.cos(a) * c - rv * math.sin(a) * s, v + ru * math.cos(a) * s + rv * math.sin(a) * c)
            for a in angles
        ]
        self.polygon(points, colour)

    def arc(self, u: float, v: float, half: float, depth: float, thickness: float, colour: Colour) -> None:
        """A line from (u - half, v) to (u + half, v) that sags by `depth` in the middle."""
        steps = np.linspace(-1, 1, 11)
        upper = [(u + half * t, v + depth * (1 - t * t) - thickness / 2) for t in steps]
        lower = [(u + half * t, v + depth * (1 - t * t) + thickness / 2) for t in steps[::-1]]
        self.polygon(upper + lower, colour)

    def outline(self, grow: float = 1.0, start: float = 0.0, stop: float = 2 * math.pi) -> list[tuple[float, float]]:
        """The face's edge between two angles: 0 at the right, growing clockwise over the chin."""
        who = self.who
        points = []
        for angle in np.linspace(start, stop, 28):
            c, s = math.cos(angle), math.sin(angle)
            power = 1 - 0.5 * who.squareness
            u = who.face_width * math.copysign(abs(c) ** power, c)
            v = math.copysign(abs(s) ** power, s)
            if v > 0:
                u *= 1 - who.jaw_taper * v * v
            points.append((u * grow, v * grow))
        return points

    # --- head

    def face(self) -> None:
        self.polygon(self.outline(), self.skin)

    def ears(self) -> None:
        size = self.who.ear_size
        for side in (-1, 1):
            u = side * (self.who.face_width + size * 0.25)
            self.ellipse(u, 0.05, size, size * 1.25, _shade(self.skin, 0.9))
            self.ellipse(u, 0.05, size * 0.45, size * 0.6, self.line)

    def eyes(self) -> None:
        who, surprised = self.who, self.shot.expression == "surprised"
        height = who.eye_size * {"surprised": 1.35, "angry": 0.72, "sad": 0.85}.get(self.shot.expression, 1.0)
        for side in (-1, 1):
            u, v, slant = side * who.eye_spacing, who.eye_height, -side * who.eye_slant
            self.ellipse(u, v, who.eye_size * 1.12, height * 1.12 + 0.02, self.line, slant)
            self.ellipse(u, v, who.eye_size, height, (250, 250, 250), slant)
            look = u + 0.25 * who.eye_size * self.shot.gaze
            iris = min(who.eye_size * 0.68, height * 0.95) * (0.8 if surprised else 1.0)
            self.ellipse(look, v, iris, iris, EYE_COLOURS[who.eye_colour])
            self.ellipse(look, v, iris * 0.5, iris * 0.5, (16, 14, 18))

    def brows(self) -> None:
        who = self.who
        lift = {"surprised": 0.17, "angry": -0.06, "sad": 0.05}.get(self.shot.expression, 0.0)
        inner = who.brow_tilt * 0.5 + {"angry": -0.26, "sad": 0.26}.get(self.shot.expression, 0.0)
        v = who.eye_height - who.eye_size - 0.12 - lift
        colour = _shade(self.hair, 0.75)
        half, thick = who.eye_size * 1.25, max(who.brow_thickness, 0.05)
        for side in (-1, 1):
            u = side * who.eye_spacing
            # `inner` above 0 lifts the end next to the nose: worry; below 0 lowers it: anger.
            ends = [(u - side * half, v - inner * 0.6), (u + side * half, v + inner * 0.6)]
            self.polygon(
                [(ends[0][0], ends[0][1] - thick), (ends[1][0], ends[1][1] - thick * 0.6),
                 (ends[1][0], ends[1][1] + thick * 0.6), (ends[0][0], ends[0][1] + thick)],
                colour,
            )  # fmt: skip

    def nose(self) -> None:
        who = self.who
        top, tip = who.eye_height + 0.08, who.eye_height + 0.12 + who.nose_length
        shade = _shade(self.skin, 0.78)
        self.polygon([(-0.03, top), (0.03, top), (who.nose_width, tip), (-who.nose_width, tip)], shade)
        self.ellipse(0, tip, who.nose_width, who.nose_width * 0.6, shade)

    def mouth(self) -> None:
        half, v = self.who.mouth_width, 0.60
        lips = _mix(_shade(self.skin, 0.66), (196, 40, 62), self.who.lip_redness)
        dark, teeth = (84, 20, 30), (252, 252, 252)
        if self.shot.expression == "smiling":
            steps = np.linspace(-1, 1, 13)
            wide = half * 1.3
            self.polygon([(-wide - 0.06, v - 0.16), (wide + 0.06, v - 0.16)]
                         + [((wide + 0.06) * t, v - 0.16 + 0.42 * (1 - t * t)) for t in steps[::-1]], lips)  # fmt: skip
            self.polygon([(wide * t, v - 0.10 + 0.26 * (1 - t * t)) for t in steps], teeth)
        elif self.shot.expression == "sad":
            self.arc(0, v + 0.22, half * 1.05, -0.26, 0.13, lips)
        elif self.shot.expression == "surprised":
            self.ellipse(0, v + 0.06, half * 0.72, 0.27, lips)
            self.ellipse(0, v + 0.06, half * 0.46, 0.18, dark)
        elif self.shot.expression == "angry":
            wide = half * 1.15
            self.polygon([(-wide, v - 0.10), (wide, v - 0.10), (wide, v + 0.18), (-wide, v + 0.18)], dark)
            self.polygon([(-wide * 0.85, v - 0.03), (wide * 0.85, v - 0.03), (wide * 0.85, v + 0.10),
                          (-wide * 0.85, v + 0.10)], teeth)  # fmt: skip
        else:
            self.arc(0, v, half, 0.03, 0.13, lips)

    def beard(self) -> None:
        kind, colour = BEARDS[self.who.beard], _shade(self.hair, 0.88)
        if kind == "beard":
            lower = self.outline(1.06, 0.12 * math.pi, 0.88 * math.pi)
            width = self.who.face_width
            self.polygon([*lower, (-width * 0.55, 0.36), (0, 0.34), (width * 0.55, 0.36)], colour)
        elif kind == "goatee":
            self.ellipse(0, 0.84, 0.24, 0.30, colour)
        if kind in ("moustache", "beard"):
            for side in (-1, 1):
                self.ellipse(side * 0.19, 0.42, 0.23, 0.10, colour, slant=side * 0.25)

    def marks(self) -> None:
        kind, who = MARKS[self.who.mark], self.who
        cheek = who.eye_height + who.eye_size + 0.18
        if kind == "freckles":
            for side in (-1, 1):
                for u, v in ((0.30, 0.0), (0.46, 0.07), (0.60, -0.03), (0.40, 0.17)):
                    self.ellipse(side * u * who.face_width * 1.1, cheek + v, 0.045, 0.045, _shade(self.skin, 0.6))
        elif kind == "mole":
            self.ellipse(0.46 * who.face_width, cheek + 0.16, 0.07, 0.07, (60, 34, 30))
        elif kind == "blush":
            for side in (-1, 1):
                self.ellipse(
                    side * 0.56 * who.face_width, cheek + 0.08, 0.19, 0.13, _mix(self.skin, (232, 70, 80), 0.4)
                )

    # --- hair

    def hair_behind(self) -> None:
        style, colour, width = HAIR_STYLES[self.who.hair_style], _shade(self.hair, 0.82), self.who.face_width
        volume = self.who.hair_volume
        if style == "bob":
            side, bottom = width + 0.16 + 0.16 * volume, 0.66 + 0.2 * volume
            self.ellipse(0, -0.12, side, 1.06, colour)
            self.polygon([(-side, -0.15), (side, -0.15), (side * 1.04, bottom), (-side * 1.04, bottom)], colour)
        elif style in ("long", "fringe"):
            side, bottom = width + 0.12 + 0.16 * volume, 1.5 + 0.4 * volume
            self.ellipse(0, -0.14, side, 1.04, colour)
            self.polygon([(-side, -0.15), (side, -0.15), (side * 1.12, bottom), (-side * 1.12, bottom)], colour)
        elif style == "afro":
            grow = 1.22 + 0.22 * volume
            for angle in np.linspace(0, 2 * math.pi, 11, endpoint=False):
                self.ellipse(0.85 * grow * width * math.cos(angle), -0.38 + 0.62 * grow * math.sin(angle),
                             0.38, 0.38, self.hair)  # fmt: skip
            self.ellipse(0, -0.38, grow * width, 0.8 * grow, self.hair)
        elif style == "pigtails":
            for side in (-1, 1):
                self.ellipse(side * (width + 0.32), 0.22, 0.26 + 0.08 * volume, 0.56, colour, slant=-side * 0.3)
                self.ellipse(side * (width + 0.16), -0.28, 0.12, 0.12, (240, 226, 80))
        elif style == "bun":
            self.ellipse(0, -1.16, 0.36 + 0.1 * volume, 0.34 + 0.08 * volume, colour)

    def hair_in_front(self) -> None:
        style, colour, width = HAIR_STYLES[self.who.hair_style], self.hair, self.who.face_width
        volume = self.who.hair_volume
        top = 1.04 + 0.12 * volume
        if style == "bald":
            return
        if style == "mohawk":
            self.polygon([(-0.24, -0.66), (-0.20, -1.3 - 0.2 * volume), (0, -1.42 - 0.25 * volume),
                          (0.20, -1.3 - 0.2 * volume), (0.24, -0.66)], colour)  # fmt: skip
            return
        hairline = {"buzz": -0.64, "afro": -0.56, "bun": -0.62, "fringe": -0.34}.get(style, -0.54)
        cap_top = 1.02 if style == "buzz" else top
        cap = [(width * 1.04 * math.cos(a), cap_top * math.sin(a)) for a in np.linspace(-math.pi + 0.12, -0.12, 20)]
        if style == "parted":
            front = [(width * 0.98, -0.34), (width * 0.3, -0.72), (-width * 0.42, -0.74), (-width * 0.98, -0.12)]
        elif style in ("bob", "long", "pigtails"):
            front = [
                (width * 0.98, -0.06),
                (width * 0.66, -0.48),
                (0, -0.74),
                (-width * 0.66, -0.48),
                (-width * 0.98, -0.06),
            ]
        elif style == "fringe":
            front = [(width, -0.1), (width * 0.86, hairline), (-width * 0.86, hairline), (-width, -0.1)]
        else:
            front = [
                (width * 0.98, -0.2),
                (width * 0.76, hairline),
                (0, hairline - 0.08),
                (-width * 0.76, hairline),
                (-width * 0.98, -0.2),
            ]
        shade = _mix(self.skin, colour, 0.7) if style == "buzz" else colour
        self.polygon(cap + front, shade)
        if style == "spiky":
            for u in np.linspace(-0.8, 0.8, 5):
                height = 1.3 + 0.25 * volume - 0.35 * u * u
                self.polygon([(u * width - 0.24, -0.6), (u * width * 1.25, -height), (u * width + 0.24, -0.6)], colour)
        elif style == "short" and volume > 0.5:
            self.ellipse(width * 0.25, -0.92, width * 0.7, 0.26, colour)

    # --- clothes

    def body(self) -> None:
        canvas, x, y, r, colour = self.canvas, self.x, self.y, self.radius, self.garment
        dark = _shade(colour, 0.72) if self.shot.colour != "black" else (84, 84, 92)
        neck, shoulder, bottom = y + 1.28 * r, 1.62 * r, SIZE + 2
        skin = _shade(self.skin, 0.86)
        kind = self.shot.garment

        def shoulders(width: float, top: float, fill: Colour) -> None:
            points: list[tuple[float, float]] = [(x - width, bottom)]
            for angle in np.linspace(math.pi, 2 * math.pi, 14):
                points.append((x + width * math.cos(angle), top + 0.42 * r + 0.42 * r * math.sin(angle)))
            canvas.polygon([*points, (x + width, bottom)], fill)

        if kind == "hoodie":
            canvas.ellipse(x, y + 0.86 * r, 1.12 * r, 0.66 * r, dark)
        if kind == "dress":
            shoulders(1.42 * r, neck - 0.08 * r, skin)
        else:
            shoulders(shoulder, neck - 0.1 * r, colour)
        canvas.rectangle(x - 0.34 * r, y + 0.7 * r, x + 0.34 * r, neck + 0.1 * r, skin)
        if kind == "t-shirt":
            canvas.ellipse(x, neck, 0.5 * r, 0.3 * r, dark)
            canvas.ellipse(x, neck - 0.06 * r, 0.42 * r, 0.24 * r, skin)
        elif kind == "hoodie":
            canvas.ellipse(x, neck, 0.62 * r, 0.34 * r, dark)
            canvas.ellipse(x, neck - 0.1 * r, 0.42 * r, 0.26 * r, skin)
            for side in (-1, 1):
                canvas.rectangle(
                    x + (side * 0.3 - 0.06) * r,
                    neck + 0.22 * r,
                    x + (side * 0.3 + 0.06) * r,
                    neck + 0.85 * r,
                    (250, 250, 250) if self.shot.colour != "white" else (120, 120, 130),
                )
        elif kind == "suit":
            shirt = (250, 250, 250) if self.shot.colour != "white" else (150, 190, 230)
            canvas.polygon([(x - 0.46 * r, neck - 0.1 * r), (x + 0.46 * r, neck - 0.1 * r), (x, neck + 1.2 * r)], shirt)
            canvas.polygon(
                [
                    (x - 0.13 * r, neck),
                    (x + 0.13 * r, neck),
                    (x + 0.17 * r, neck + 0.7 * r),
                    (x, neck + 1.0 * r),
                    (x - 0.17 * r, neck + 0.7 * r),
                ],
                (60, 60, 70),
            )
            for side in (-1, 1):
                canvas.polygon(
                    [
                        (x + side * 0.4 * r, neck - 0.2 * r),
                        (x + side * 0.86 * r, neck + 0.26 * r),
                        (x + side * 0.08 * r, neck + 1.25 * r),
                    ],
                    dark,
                )
        elif kind == "dress":
            canvas.polygon(
                [
                    (x - 1.0 * r, neck + 0.5 * r),
                    (x - 0.5 * r, neck + 0.34 * r),
                    (x, neck + 0.52 * r),
                    (x + 0.5 * r, neck + 0.34 * r),
                    (x + 1.0 * r, neck + 0.5 * r),
                    (x + 1.05 * r, bottom),
                    (x - 1.05 * r, bottom),
                ],
                colour,
            )
            for side in (-1, 1):
                canvas.polygon(
                    [
                        (x + side * 0.62 * r, neck + 0.44 * r),
                        (x + side * 0.78 * r, neck + 0.44 * r),
                        (x + side * 0.62 * r, neck - 0.04 * r),
                        (x + side * 0.48 * r, neck - 0.04 * r),
                    ],
                    colour,
                )
        elif kind == "sweater":
            stripe = (245, 240, 225) if self.shot.colour not in ("white", "yellow") else (110, 110, 130)
            canvas.rectangle(x - 0.48 * r, neck - 0.42 * r, x + 0.48 * r, neck + 0.12 * r, dark)
            for band in (0.42, 0.98):
                canvas.polygon(
                    [
                        (x - 1.52 * r, neck + (band + 0.06) * r),
                        (x + 1.52 * r, neck + (band + 0.06) * r),
                        (x + 1.6 * r, neck + (band + 0.28) * r),
                        (x - 1.6 * r, neck + (band + 0.28) * r),
                    ],
                    stripe,
                )

    def accessory(self) -> None:
        who, kind, width = self.who, self.shot.accessory, self.who.face_width
        if kind in ("glasses", "sunglasses"):
            self.glasses(dark=kind == "sunglasses")
        elif kind == "hat":
            self.polygon(
                [(-width * 1.0, -0.58), (-width * 0.9, -1.42), (width * 0.9, -1.42), (width * 1.0, -0.58)],
                (122, 78, 44),
            )
            self.polygon(
                [(-width * 0.98, -0.62), (-width * 0.95, -0.86), (width * 0.95, -0.86), (width * 0.98, -0.62)],
                (44, 32, 30),
            )
            self.ellipse(0, -0.58, width * 1.55, 0.15, (122, 78, 44))
        elif kind == "crown":
            points = [
                (-0.72, -0.66),
                (-0.84, -1.38),
                (-0.42, -1.0),
                (0, -1.5),
                (0.42, -1.0),
                (0.84, -1.38),
                (0.72, -0.66),
            ]
            self.polygon([(u * width * 1.1, v) for u, v in points], (250, 200, 40))
            self.polygon(
                [(-0.76 * width, -0.66), (0.76 * width, -0.66), (0.78 * width, -0.8), (-0.78 * width, -0.8)],
                (206, 140, 20),
            )
            self.ellipse(0, -0.96, 0.12, 0.12, (210, 30, 60))
        elif kind == "headphones":
            reach = width + 0.14
            for grow, colour in ((1.12, (40, 40, 48)), (1.0, (90, 90, 104))):
                outer = [(reach * grow * math.cos(a), 1.16 * grow * math.sin(a)) for a in np.linspace(-math.pi, 0, 18)]
                inner = [
                    (reach * (grow - 0.1) * math.cos(a), 1.16 * (grow - 0.1) * math.sin(a))
                    for a in np.linspace(0, -math.pi, 18)
                ]
                self.polygon(outer + inner, colour)
            for side in (-1, 1):
                self.ellipse(side * (reach + 0.04), 0.06, 0.24, 0.38, (40, 40, 48))
                self.ellipse(side * (reach + 0.04), 0.06, 0.12, 0.22, (220, 60, 60))
        assert kind in ACCESSORIES, who

    def glasses(self, *, dark: bool) -> None:
        who = self.who
        half, height, frame = min(who.eye_size * 1.5, who.eye_spacing - 0.03), who.eye_size * 1.45, 0.09
        colour = (24, 24, 28)
        for side in (-1, 1):
            u, v = side * who.eye_spacing, who.eye_height
            corners = [(u - half, v - height), (u + half, v - height), (u + half, v + height), (u - half, v + height)]
            if dark:
                self.polygon(corners, colour)
                self.polygon([(u - half * 0.6, v - height * 0.6), (u - half * 0.1, v - height * 0.6),
                              (u - half * 0.5, v + height * 0.1)], (110, 120, 140))  # fmt: skip
            else:
                for (u0, v0), (u1, v1) in zip(corners, corners[1:] + corners[:1], strict=True):
                    self.bar(u0, v0, u1, v1, frame, colour)
            self.bar(
                side * (who.eye_spacing + half),
                v - height * 0.5,
                side * (who.face_width + 0.03),
                v - height * 0.5,
                0.1,
                colour,
            )
        self.bar(
            -(who.eye_spacing - half),
            who.eye_height - 0.05,
            who.eye_spacing - half,
            who.eye_height - 0.05,
            frame,
            colour,
        )

    def bar(self, u0: float, v0: float, u1: float, v1: float, thickness: float, colour: Colour) -> None:
        t = thickness / 2
        u0, u1, v0, v1 = min(u0, u1) - t, max(u0, u1) + t, min(v0, v1) - t, max(v0, v1) + t
        self.polygon([(u0, v0), (u1, v0), (u1, v1), (u0, v1)], colour)


# --- places


def _hills(canvas: _Canvas, rng: np.random.Generator, base: float, height: float, colour: Colour) -> None:
    phase, wave = rng.uniform(0, 6.28), rng.uniform(0.06, 0.11)
    points = [(x, base - height * (0.5 + 0.5 * math.sin(phase + wave * x))) for x in np.linspace(-1, SIZE + 1, 24)]
    canvas.polygon([*points, (SIZE + 1, SIZE), (-1, SIZE)], colour)


def _beach(canvas: _Canvas, rng: np.random.Generator) -> None:
    horizon = rng.uniform(26, 32)
    canvas.gradient((96, 182, 244), (196, 230, 250), 0, horizon)
    canvas.ellipse(rng.uniform(6, 58), rng.uniform(6, 14), 5, 5, (255, 240, 150))
    canvas.rectangle(0, horizon, SIZE, SIZE, (36, 132, 186))
    _hills(canvas, rng, rng.uniform(46, 50), 4, (236, 210, 150))


def _forest(canvas: _Canvas, rng: np.random.Generator) -> None:
    canvas.gradient((150, 200, 150), (70, 120, 70))
    for depth, colour in ((0.6, (60, 116, 66)), (1.0, (28, 78, 44))):
        for x in np.arange(rng.uniform(-8, 2), SIZE + 8, 15 * depth + 3):
            tall = rng.uniform(30, 44) * depth
            base = 44 + 8 * depth
            canvas.rectangle(x - 1.4, base - 4, x + 1.4, base + 6, (84, 56, 36))
            for level in (0.0, 0.32):
                half = 7.5 * depth * (1 - 0.5 * level)
                canvas.polygon(
                    [(x - half, base - tall * level * 0.9), (x + half, base - tall * level * 0.9), (x, base - tall)],
                    colour,
                )
    canvas.rectangle(0, 55, SIZE, SIZE, (46, 84, 44))


def _city(canvas: _Canvas, rng: np.random.Generator) -> None:
    canvas.gradient((18, 20, 58), (92, 60, 120))
    x = rng.uniform(-6, 0)
    while x < SIZE:
        wide, top = rng.uniform(9, 14), rng.uniform(8, 34)
        canvas.rectangle(x, top, x + wide, SIZE, _shade((40, 44, 78), rng.uniform(0.7, 1.05)))
        for row in np.arange(top + 3, SIZE, 6):
            for column in np.arange(x + 2, x + wide - 2.5, 4.5):
                if rng.random() < 0.6:
                    canvas.rectangle(column, row, column + 2.4, row + 3, (250, 214, 110))
        x += wide + rng.uniform(0, 1.5)


def _snow(canvas: _Canvas, rng: np.random.Generator) -> None:
    canvas.gradient((150, 178, 206), (214, 226, 238))
    for x in np.arange(rng.uniform(-10, 4), SIZE + 16, rng.uniform(24, 30)):
        top, half = rng.uniform(8, 18), rng.uniform(16, 22)
        canvas.polygon([(x - half, 46), (x, top), (x + half, 46)], (110, 130, 160))
        canvas.polygon(
            [(x - half * 0.36, top + 0.36 * (46 - top)), (x, top), (x + half * 0.36, top + 0.36 * (46 - top))],
            (252, 253, 255),
        )
    _hills(canvas, rng, 46, 4, (244, 248, 253))
    for _ in range(12):
        canvas.ellipse(rng.uniform(0, SIZE), rng.uniform(0, SIZE), 1.1, 1.1, (255, 255, 255))


def _desert(canvas: _Canvas, rng: np.random.Generator) -> None:
    canvas.gradient((240, 140, 70), (252, 212, 140), 0, 40)
    canvas.ellipse(rng.uniform(8, 56), rng.uniform(10, 18), 6, 6, (255, 240, 200))
    _hills(canvas, rng, 42, 8, (222, 150, 80))
    x, y = float(rng.choice([rng.uniform(4, 11), rng.uniform(53, 60)])), rng.uniform(26, 30)
    for dx, dy, wide, tall in ((0, 0, 2, 22), (-4.5, 6, 1.5, 7), (4.5, 4, 1.5, 7)):
        canvas.rectangle(x + dx - wide, y + dy, x + dx + wide, y + dy + tall, (52, 128, 72))
    canvas.rectangle(x - 5, y + 11, x + 5, y + 13.5, (52, 128, 72))
    _hills(canvas, rng, 53, 5, (204, 124, 62))


def _garden(canvas: _Canvas, rng: np.random.Generator) -> None:
    canvas.gradient((170, 220, 250), (220, 240, 250), 0, 30)
    for x in np.arange(rng.uniform(-6, 0), SIZE + 8, 11):
        canvas.ellipse(x, 30, 8, rng.uniform(9, 13), (70, 150, 66))
    canvas.rectangle(0, 34, SIZE, SIZE, (120, 196, 84))
    for x in np.arange(rng.uniform(0, 5), SIZE + 4, 9):
        y = rng.uniform(26, 50)
        colour = ((236, 70, 96), (250, 220, 70), (250, 250, 250), (190, 100, 220))[rng.integers(4)]
        canvas.ellipse(x, y, 3, 3, colour)
        canvas.ellipse(x, y, 1.2, 1.2, (240, 170, 40) if colour[2] != 70 else (150, 90, 30))


def _library(canvas: _Canvas, rng: np.random.Generator) -> None:
    canvas.rectangle(0, 0, SIZE, SIZE, (70, 44, 30))
    for shelf in range(4):
        bottom = 15 + 16.5 * shelf
        x = rng.uniform(-2, 0)
        while x < SIZE:
            wide = rng.uniform(3.5, 5.5)
            colour = ((168, 52, 46), (46, 92, 124), (196, 158, 76), (66, 112, 76), (120, 80, 130))[rng.integers(5)]
            canvas.rectangle(x, bottom - rng.uniform(10, 13), x + wide - 0.6, bottom, colour)
            x += wide
        canvas.rectangle(0, bottom, SIZE, bottom + 2.4, (142, 96, 60))


def _space(canvas: _Canvas, rng: np.random.Generator) -> None:
    canvas.gradient((10, 8, 28), (44, 18, 70))
    for _ in range(26):
        size = rng.uniform(0.6, 1.1)
        canvas.ellipse(rng.uniform(0, SIZE), rng.uniform(0, SIZE), size, size, (250, 250, 230))
    x, y, size = float(rng.choice([rng.uniform(5, 13), rng.uniform(51, 59)])), rng.uniform(9, 18), rng.uniform(6, 8)
    colour = ((220, 130, 80), (110, 180, 210), (190, 150, 220))[rng.integers(3)]
    canvas.ellipse(x, y, size, size, colour)
    canvas.ellipse(x, y, size * 1.6, size * 0.28, _shade(colour, 1.5))


def _studio(canvas: _Canvas, rng: np.random.Generator) -> None:
    top = int(rng.integers(176, 200))
    canvas.gradient((top, top, top + 4), (226, 226, 230))


def _wall(canvas: _Canvas, rng: np.random.Generator) -> None:
    canvas.rectangle(0, 0, SIZE, SIZE, (208, 190, 176))
    for row, y in enumerate(np.arange(-4 + rng.uniform(0, 3), SIZE, 8)):
        for x in range(-14 + 8 * (row % 2), SIZE, 16):
            canvas.rectangle(x, y, x + 14.6, y + 6.7, _shade((176, 84, 64), rng.uniform(0.86, 1.08)))


_PLACE_PAINTERS = {
    "beach": _beach,
    "forest": _forest,
    "city": _city,
    "snow": _snow,
    "desert": _desert,
    "garden": _garden,
    "library": _library,
    "space": _space,
    "studio": _studio,
    "wall": _wall,
}
assert set(_PLACE_PAINTERS) == set(PLACES) == set(PLACE_ALONE)
assert {field.name for field in fields(Identity)} >= set(CONTINUOUS)
