"""What people and bad luck put into sweep files, photo folders, ledgers and names."""

from __future__ import annotations

import copy
import io
import json
from typing import Any

import yaml
from hypothesis import strategies as st
from PIL import Image

HUGE = (10**9, 10**12, 10**18, 10**400, 1e12, 1e18, 1e308, 1e-320)
NASTY: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([*HUGE, *(-number for number in HUGE)]),
    st.floats(),
    st.text(max_size=40),
    st.sampled_from(
        ["../../etc/passwd", "/", "~", ".", "\x1b[31m", "a\u202eb", "\ud800", "no", "1e5", "2026-11-25", "x" * 9_000]
    ),
    st.lists(st.integers() | st.text(max_size=5) | st.floats(), max_size=4),
    st.sampled_from(
        [
            {"low": 1, "high": 10**12},
            {"low": 1, "high": 10**12, "log": True},
            {"low": 1, "high": 10**12, "step": 1},
            {"low": 0, "high": 1, "step": 1e-12},
            {"low": 1e-320, "high": 1e308, "log": True},
            {"low": -(10**400), "high": 10**400},
            {"low": float("nan"), "high": 1},
            {"choices": list(range(1, 2_000))},
            {"choices": [1, True, 1.0]},
            {"choices": [[1], {"a": 1}]},
            {"choices": []},
            {"low": 2},
        ]
    ),
).map(copy.deepcopy)  # what is drawn may be changed further
"""Values for any place: huge, tiny, of another kind, with a will of their own."""

YAML_PIECES = st.sampled_from(
    [
        "name: ada\n",
        "- ",
        "  ",
        "\t",
        "&a ",
        "*a",
        "!!python/object:os.system ",
        "!!binary ",
        "? ",
        "{",
        "}",
        "[",
        "]",
        "|\n",
        ">\n",
        "#",
        "'",
        '"',
        "\n",
        ": ",
        "%YAML 1.1\n",
        "---\n",
        "...\n",
        "<<: ",
        "\ufeff",
        "\x85",
        "methods:\n",
        "subject: {photos: .}\n",
        "0x",
        "1_0",
        "!!int a",
        "!!timestamp 2026-99-99",
        "!!set {a}",
        "!<tag:x> y",
        "\\u",
        "=",
        "!!float x",
        "!!null x",
        "{" * 30,
        "? [a]\n: b\n",
    ]
)
yaml_texts = st.one_of(
    st.text(max_size=200),
    st.lists(YAML_PIECES | st.text(max_size=6), max_size=40).map("".join),
    st.binary(max_size=200),
)
"""Text or bytes that may or may not be YAML."""


@st.composite
def sweeps(draw: st.DrawFn, valid: dict[str, Any]) -> dict[str, Any]:
    """A valid sweep with one or two of its places changed, taken away or added."""
    sweep = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 2))):
        section: Any = sweep
        for _ in range(draw(st.integers(0, 3))):
            inner = [key for key, value in section.items() if isinstance(value, dict) and value]
            if not inner:
                break
            section = section[draw(st.sampled_from(sorted(inner, key=str)))]
        if section and draw(st.integers(0, 9)):
            key = draw(st.sampled_from(sorted(section, key=str)))
        else:
            key = draw(st.text(max_size=8) | st.sampled_from(FIELDS))
        if draw(st.integers(0, 5)):
            section[key] = draw(NASTY)
        else:
            section.pop(key, None)
    return sweep


FIELDS = (
    "rank",
    "num_class_images",
    "with_prior_preservation",
    "resolution",
    "images_per_prompt",
    "at_steps",
    "width",
    "height",
    "num_inference_steps",
    "batch_size",
    "num_trials",
    "seed",
    "storage",
    "render",
    "resources",
    "max_train_steps",
    "lr_scheduler",
    "lr_warmup_steps",
    "max_concurrent_trials",
    "prompt_alignment_margin",
    "rare_token",
    "class_prompt",
    "early_stopping",
    "sampler",
    "text_encoder_learning_rate",
    "references",
)


def as_yaml(sweep: dict[str, Any]) -> bytes:
    """The mapping as a file; what YAML cannot write (a lone surrogate) is escaped."""
    return yaml.safe_dump(sweep).encode("utf-8", "backslashreplace")


overrides = st.one_of(
    st.text(max_size=40),
    st.tuples(
        st.sampled_from(
            [f"methods.lora.{field}" for field in FIELDS]
            + [f"evaluation.{field}" for field in FIELDS]
            + ["name", "search.num_trials", "subject.resolution", "a.b.c.d", "methods", "", "."]
        ),
        st.sampled_from(
            [
                "1e18",
                "[1, 2",
                "{low: 1, high: 1e12}",
                "{choices: [1, 2]}",
                "1" * 5000,
                "null",
                "no",
                "[1000000000]",
                "!!python/name:os.system",
                "*a",
                "{a: {b: {c: {}}}}",
                "../..",
                "[" * 50,
            ]
        )
        | st.text(max_size=20),
    ).map("=".join),
).filter(lambda text: "\x00" not in text)
"""Values of `--set`; the system passes no NUL on to a program."""


def drawn(kind: str, mode: str, size: tuple[int, int]) -> bytes:
    """A small picture's bytes."""
    image = Image.linear_gradient("L").resize(size).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


PICTURES = tuple(
    drawn(kind, mode, size)
    for kind, modes in {
        "PNG": ("L", "LA", "P", "1", "RGB", "RGBA", "I;16"),
        "JPEG": ("L", "RGB", "CMYK"),
        "WEBP": ("RGB", "RGBA"),
    }.items()
    for mode in modes
    for size in ((1, 1), (40, 33), (600, 2))
)


@st.composite
def garbled(draw: st.DrawFn, wholes: tuple[bytes, ...]) -> bytes:
    """One of `wholes` cut, with bytes changed, taken out, doubled, or with another's tail."""
    content = bytearray(draw(st.sampled_from(wholes)))
    for _ in range(draw(st.integers(0, 6))):
        kind, place = draw(st.integers(0, 4)), draw(st.integers(0, max(0, len(content) - 1)))
        length = draw(st.integers(1, 8))
        if kind == 0:
            content[place : place + length] = draw(st.binary(min_size=length, max_size=length))
        elif kind == 1:
            del content[place : place + length]
        elif kind == 2:
            content[place:place] = content[place : place + length]
        elif kind == 3:
            del content[place:]
        else:
            content[place:] = draw(st.sampled_from(wholes))[place:]
    return bytes(content)


@st.composite
def ledger_entries(draw: st.DrawFn, whole: bytes) -> bytes:
    """A trial.json garbled as bytes, or whole JSON with values that nobody wrote."""
    if draw(st.booleans()):
        return draw(garbled((whole,)))
    record = json.loads(whole)
    for _ in range(draw(st.integers(1, 3))):
        place: Any = record
        while isinstance(place, dict | list) and place:
            keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
            key = draw(st.sampled_from(keys))
            if not isinstance(place[key], dict | list) or draw(st.integers(0, 3)) == 0:
                place[key] = draw(NASTY)
                break
            place = place[key]
    return json.dumps(record).encode("utf-8", "backslashreplace")


names = st.one_of(
    st.text(max_size=80),
    st.lists(
        st.sampled_from(["..", ".", "/", "\\", "a", "~", " ", "\n", "\x1b", "-", "--", "é", "CON", "\u202e"]),
        max_size=12,
    ).map("".join),
    st.text(alphabet="abc._-", max_size=400),
).filter(lambda text: "\x00" not in text)
"""Names of sweeps and of run folders."""
