"""The search space: a method's own config with some values left open.

A value in the sweep file is fixed (`rank: 16`), a list to choose from (`{choices: [2, 16]}`) or a range
(`{low: 1e-5, high: 1e-3, log: true}`). There is no second schema: every corner is validated by the field of
`LoraConfig` or `DreamBoothConfig` that it will fill.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sweeps.ledger.identity import config_hash
from sweeps.wording import shorten, unknown_key
from training.config import HORIZON_FREE_SCHEDULES, METHODS, MethodConfig, TrainConfig, scoring_steps
from training.errors import UserError

Scalar = bool | int | float | str | None


class Choices(BaseModel):
    """One of several values."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    choices: tuple[Scalar, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> Choices:
        if len({(type(choice) is bool, choice) for choice in self.choices}) < len(self.choices):
            raise ValueError(f"choices must differ from each other, got {list(self.choices)}")
        return self


def is_finite(number: int | float) -> bool:
    """Is it a number that a float can hold? A whole number of 400 digits is not."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


class Range(BaseModel):
    """A number between `low` and `high`, both included; on a logarithmic scale, or in steps."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _laws(self) -> Range:
        if not (is_finite(self.low) and is_finite(self.high) and self.low <= self.high):
            raise ValueError(f"low <= high must hold for finite numbers, got low {self.low} and high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low > 0 must hold on a log scale, got {self.low}")
        if self.log and self.step is not None:
            raise ValueError(f"log and step exclude each other, got log true and step {self.step}")
        return self

    @property
    def is_int(self) -> bool:
        """Whole numbers only? `parse_space` gives the ends the type of the field."""
        return isinstance(self.low, int) and isinstance(self.high, int) and not isinstance(self.step, float)

    @property
    def num_points(self) -> int | None:
        """How many values it holds; None where they are endless."""
        if self.low == self.high:
            return 1
        step = 1 if self.step is None and self.is_int else self.step
        return None if step is None else math.floor((self.high - self.low) / step + 1e-9) + 1

    def points(self) -> list[int | float]:
        """The values `low`, `low + step`, ... up to `high`, as they are written in decimals.

        Whole numbers without a step are all whole numbers.
        """
        if self.num_points is None:
            raise ValueError("a grid needs choices, or a range with a step")
        return [self.point(i) for i in range(self.num_points)]

    def point(self, i: int) -> int | float:
        """Number `i` of `points`, from 0."""
        return type(self.low)(Decimal(str(self.low)) + i * Decimal(str(self.step or 1)))


Value = Choices | Range | Scalar
MethodSpace = Mapping[str, Value]
"""Field of the method's config -> its fixed value, choices or range."""

Chooser = Callable[[str, Choices | Range], Scalar]
"""What fills an open value: its name (`lora/rank`) and what may be chosen -> the chosen value."""


class MisplacedError(UserError):
    """A law broken at `place`, dotted and relative to what was being read."""

    def __init__(self, place: str, law: str) -> None:
        super().__init__(f"{place}: {law}")
        self.place = place
        self.law = law


def explain(error: ValidationError) -> tuple[tuple[str | int, ...], str]:
    """Place and law of the first thing pydantic found wrong, with the value it got."""
    first = error.errors(include_url=False)[0]
    message = str(first.get("ctx", {}).get("error", first["msg"]))
    if first["type"] == "value_error":
        return first["loc"], message
    if first["type"] == "missing":
        return first["loc"], "must be given"
    for pydantic_says, we_say in _PLAIN_WORDS.items():
        message = message.replace(pydantic_says, we_say)
    return first["loc"], f"{message[0].lower()}{message[1:]}, got {shorten(first['input'])}"


_PLAIN_WORDS = {
    "Input should": "should",
    "String should": "should",
    " after validation, not 0": "",
    "a valid tuple": "a list",
    "a valid list": "a list",
    "Input is not a valid path for <class 'pathlib.Path'>": "should be a path",
    "a valid dictionary or instance of": "a mapping, as in",
}


# --- reading -------------------------------------------------------------------------------------------------------


def parse_space(method: str, raw: object) -> dict[str, Value]:
    """Read one method's section and try every corner.

    Args:
        method: `lora` or `dreambooth`.
        raw: the section as YAML gave it; None is an empty one (all defaults).

    Raises:
        MisplacedError: with the place of the offending value below the section.
    """
    if raw is None:
        raw = {}
    if not isinstance(raw, Mapping):
        raise MisplacedError("", f"must be a mapping of {method}'s settings, got {shorten(raw)}")
    model = METHODS[method]
    known = [name for name in model.model_fields if name != "method"]
    space: dict[str, Value] = {}
    for name, value in raw.items():
        if name not in known:
            raise MisplacedError(str(name), unknown_key(str(name), known))
        space[name] = _parse_value(model, name, value)
    _check_corners_together(model, space)
    return space


def _parse_value(model: type[BaseModel], name: str, raw: object) -> Value:
    if isinstance(raw, Choices | Range):
        raw = raw.model_dump(exclude_none=True)
    if isinstance(raw, list | tuple):
        raise MisplacedError(name, f"a list is not a value; to choose from it write {{choices: {shorten(list(raw))}}}")
    if not isinstance(raw, Mapping):
        fixed: Scalar = _parse_corner(model, name, name, raw)
        return fixed
    kind = _kind_of(name, raw)
    try:
        parsed = kind.model_validate(dict(raw))
    except ValidationError as error:
        loc, law = explain(error)
        if error.errors()[0]["type"] == "extra_forbidden":
            law = unknown_key(str(loc[-1]), list(kind.model_fields))
        # loc of a union ends with the branch's name, which means nothing to the user
        raise MisplacedError(".".join([name, *(str(part) for part in loc[:1])]), law) from None
    if isinstance(parsed, Choices):
        return Choices(choices=tuple(_parse_corner(model, name, f"{name}.choices", value) for value in parsed.choices))
    return _parse_range(model, name, parsed)


def _kind_of(name: str, raw: Mapping[Any, object]) -> type[Choices] | type[Range]:
    if "choices" in raw:
        return Choices
    if "low" in raw or "high" in raw:
        return Range
    known = [*Choices.model_fields, *Range.model_fields]
    for key in raw:
        if get_close_matches(str(key), known, n=1, cutoff=0.5):
            raise MisplacedError(f"{name}.{key}", unknown_key(str(key), known))
    raise MisplacedError(
        name, f"must be a value, {{choices: [...]}} or {{low: ..., high: ...}}, got {shorten(dict(raw))}"
    )


def _parse_range(model: type[BaseModel], name: str, value: Range) -> Range:
    number = _number_type(model, name)
    if number is None:
        raise MisplacedError(
            name, f"a range needs a field that is a number; give choices, got {value.low}..{value.high}"
        )
    corners: dict[str, Any] = {
        end: _parse_corner(model, name, f"{name}.{end}", getattr(value, end)) for end in ("low", "high")
    }
    step = value.step
    if step is not None and number is int and step != int(step):
        raise MisplacedError(f"{name}.step", f"must be a whole number, got {step}")
    return Range(low=corners["low"], high=corners["high"], log=value.log, step=None if step is None else number(step))


def _number_type(model: type[BaseModel], name: str) -> type[int] | type[float] | None:
    annotation = model.model_fields[name].annotation
    kinds = get_args(annotation) or (annotation,)
    if float in kinds:
        return float
    return int if int in kinds else None


def _parse_corner(model: type[BaseModel], name: str, place: str, value: object) -> Any:
    """`value` as the field will hold it; the field's own constraint judges it."""
    if isinstance(value, bool) and _number_type(model, name) is not None:
        raise MisplacedError(place, f"must be a number, got {value}")
    try:
        return getattr(model.model_validate({name: value}), name)
    except ValidationError as error:
        raise MisplacedError(place, explain(error)[1]) from None


def _check_corners_together(model: type[TrainConfig], space: MethodSpace) -> None:
    """Laws between fields, at every combination of the extremes of the fields that have such laws."""
    extremes = {
        name: extremes_of(value) if name in model.BOUND_TOGETHER else corners_of(value)[:1]
        for name, value in space.items()
    }
    for values in itertools.product(*extremes.values()):
        try:
            model.model_validate(dict(zip(extremes, values, strict=True)))
        except ValidationError as error:
            loc, law = explain(error)
            raise MisplacedError(".".join(str(part) for part in loc[:1]), law) from None


def extremes_of(value: Value) -> tuple[Scalar, ...]:
    """Of numbers the least and the greatest, of anything else every choice."""
    corners = corners_of(value)
    if all(isinstance(corner, int | float) and not isinstance(corner, bool) for corner in corners):
        return (min(corners), max(corners))  # type: ignore[type-var]
    return corners


def corners_of(value: Value) -> tuple[Scalar, ...]:
    """The extreme values: a fixed value itself, each choice, both ends of a range."""
    if isinstance(value, Choices):
        return value.choices
    return (value.low, value.high) if isinstance(value, Range) else (value,)


def indivisible(value: Value, divisor: int) -> Scalar:
    """A whole number among the values that `divisor` does not divide; None where it divides all of them."""
    if isinstance(value, Range):
        second = (value.point(1),) if (value.num_points or 1) > 1 else ()
        corners: tuple[Scalar, ...] = (value.low, value.high, *second)  # so it divides the step, and all that follow
    else:
        corners = corners_of(value)
    return next((corner for corner in corners if corner % divisor), None)  # type: ignore[operator]


def largest(space: MethodSpace, method: str, field: str) -> Any:
    """The largest value that `field` can take in this space."""
    default = METHODS[method].model_fields[field].default
    return max(corners_of(space[field])) if field in space else default  # type: ignore[type-var]


# --- drawing -------------------------------------------------------------------------------------------------------


def scoring_points(config: MethodConfig, at_steps: Sequence[int]) -> list[int]:
    """The steps at which a trial of `config` is scored, in order; the last is its `max_train_steps`.

    Under a schedule that does not know the horizon a checkpoint at step s equals the end of a run of s steps, so one
    run serves all points. Under any other it does not, and only the end of a run is a point.
    """
    knows_its_end = config.lr_scheduler not in HORIZON_FREE_SCHEDULES
    return scoring_steps([] if knows_its_end else at_steps, config.max_train_steps)


SHOWN_ANYWAY = frozenset({"rank", "learning_rate", "max_train_steps", "seed"})
"""Fields of which every table has a column, or the steps of a checkpoint speak."""


def open_options(space: MethodSpace) -> tuple[str, ...]:
    """What else trials of this space may differ in: other fields than those that every table shows."""
    return tuple(name for name, value in space.items() if name not in SHOWN_ANYWAY and not _is_fixed(value))


def options_text(config: MethodConfig, options: Sequence[str]) -> str:
    """A trial's values of some fields, as a sweep file has them: `target_modules all, snr_gamma 5`."""
    return ", ".join(f"{name} {_as_written(getattr(config, name))}" for name in options)


def _as_written(value: Scalar) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def open_length(space: MethodSpace, config: MethodConfig, at_steps: Sequence[int]) -> Choices | None:
    """The run lengths to choose from where a schedule that knows the horizon meets a fixed `max_train_steps`.

    Each scoring point is then a run of its own. A searched `max_train_steps` names its lengths itself.
    """
    if config.lr_scheduler in HORIZON_FREE_SCHEDULES or not _is_fixed(space.get("max_train_steps")):
        return None
    return Choices(choices=tuple(scoring_steps(at_steps, config.max_train_steps)))


def _is_fixed(value: Value) -> bool:
    return not isinstance(value, Choices | Range)


def draw(methods: Mapping[str, MethodSpace], at_steps: Sequence[int], choose: Chooser) -> MethodConfig:
    """One trial's config, every open value filled by `choose`.

    Names given to `choose` are `method` and `<method>/<field>`; a value is asked for only where it applies.
    """
    names = tuple(methods)
    method = str(choose("method", Choices(choices=names))) if len(names) > 1 else names[0]
    space = methods[method]
    values = {
        field: choose(f"{method}/{field}", value) if isinstance(value, Choices | Range) else value
        for field, value in space.items()
    }
    config = METHODS[method].model_validate(values)
    lengths = open_length(space, config, at_steps)
    if lengths is None:
        return config
    steps = choose(f"{method}/max_train_steps", lengths)
    return METHODS[method].model_validate({**values, "max_train_steps": steps})


def choices_made(config: MethodConfig) -> Chooser:
    """The chooser that leads `draw` to `config` again.

    It raises LookupError where the space does not hold the config's value (any more).
    """

    def choose(name: str, value: Choices | Range) -> Scalar:
        made: Scalar = config.method if name == "method" else getattr(config, name.split("/")[1])
        if not contains(value, made):
            raise LookupError(f"{name} {made!r} is outside of {value}")
        return made

    return choose


def contains(value: Choices | Range, made: Scalar) -> bool:
    """Could `made` have been chosen?"""
    if isinstance(value, Choices):
        return made in value.choices
    if not isinstance(made, int | float):
        return False
    if value.step is None:
        return value.low <= made <= value.high
    steps = (made - value.low) / value.step  # a sum of steps may miss a point, and `high`, by a rounding
    return -1e-9 <= steps <= (value.num_points or 0) - 1 + 1e-9 and math.isclose(steps, round(steps), abs_tol=1e-9)


def holds(methods: Mapping[str, MethodSpace], at_steps: Sequence[int], config: MethodConfig) -> bool:
    """Could `draw` have made `config`: does the space hold its open values, and are its fixed ones the same?"""
    try:
        return config_hash(draw(methods, at_steps, choices_made(config))) == config_hash(config)
    except (LookupError, ValidationError):
        return False


def random_chooser(rng: random.Random) -> Chooser:
    """Independent uniform draws (log-uniform where the range is)."""

    def choose(_name: str, value: Choices | Range) -> Scalar:
        if isinstance(value, Choices):
            return rng.choice(value.choices)
        if value.step is not None:
            return value.point(rng.randrange(value.num_points or 1))
        if not value.log:
            return rng.randint(int(value.low), int(value.high)) if value.is_int else rng.uniform(value.low, value.high)
        drawn = math.exp(rng.uniform(math.log(value.low), math.log(value.high)))
        clipped = min(max(drawn, value.low), value.high)
        return round(clipped) if value.is_int else clipped

    return choose


def grid(methods: Mapping[str, MethodSpace], at_steps: Sequence[int]) -> Iterator[MethodConfig]:
    """Every combination of choices and stepped ranges, in the order of the sweep file."""
    for method, space in methods.items():
        options = [value.points() if isinstance(value, Range) else corners_of(value) for value in space.values()]
        for combination in itertools.product(*options):
            values = dict(zip(space, combination, strict=True))
            config = METHODS[method].model_validate(values)
            lengths = open_length(space, config, at_steps)
            for steps in corners_of(config.max_train_steps if lengths is None else lengths):
                yield METHODS[method].model_validate({**values, "max_train_steps": steps})


def num_combinations(methods: Mapping[str, MethodSpace]) -> int:
    """How many combinations of values a closed space holds, before scoring points open any run length."""
    return sum(
        math.prod((v.num_points or 0) if isinstance(v, Range) else len(corners_of(v)) for v in space.values())
        for space in methods.values()
    )


def num_distinct(methods: Mapping[str, MethodSpace], at_steps: Sequence[int], limit: int) -> int:
    """How many different trials the space holds, counted up to `limit`."""
    sizes = [value.num_points for space in methods.values() for value in space.values() if isinstance(value, Range)]
    if any(size is None or size >= limit for size in sizes):
        return limit
    distinct: set[str] = set()
    for config in grid(methods, at_steps):
        distinct.add(config_hash(config))
        if len(distinct) >= limit:
            break
    return len(distinct)
