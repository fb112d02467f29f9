"""The sweep file: one section per room, read strictly.

A mistake in it is a `ValueError` of one line: place (`sweep.yaml:methods.lora.rank`), law and value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from evaluation.config import EvaluationConfig, RenderConfig
from evaluation.rare_token import guess_rare_token
from sweeps.space import (
    Choices,
    MisplacedError,
    Range,
    Value,
    corners_of,
    explain,
    grid,
    indivisible,
    is_finite,
    largest,
    num_combinations,
    parse_space,
)
from sweeps.wording import shorten, unknown_key
from training.base_name import BaseName
from training.canonical import added_in
from training.config import METHODS, MethodConfig, SubjectConfig
from training.errors import UserError
from training.paths import ConfigPath, NameOrPath, relative_to, resolve

NAME_LAW = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_FILE_BYTES = 1_000_000
MAX_YAML_DEPTH = 20
MAX_GRID_TRIALS = 10_000
VERSIONED_PACKAGES = ("dreamsweep", "ray", "optuna", "torch", "diffusers", "transformers", "peft", "accelerate")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SearchConfig(_Section):
    """How trials are chosen and when a poor one is stopped."""

    sampler: Literal["tpe", "nsga2", "random", "grid"] = "tpe"
    """`grid` and `random` decide all trials beforehand; `tpe` follows the champion's score, `nsga2` both scores."""
    num_trials: int | None = Field(default=None, ge=1, le=100_000)
    """Trials to run; default 16, and for `grid` the whole grid."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    early_stopping: Literal["none", "asha"] = "none"
    max_concurrent_trials: int | None = Field(default=None, ge=1)
    """Default: as many as the cluster's resources hold."""
    priors: Literal["none", "published"] = Field(default="none", json_schema_extra=added_in("0.2.0"))
    """`published`: the first trials of `tpe` and `nsga2` are published settings that the space holds
    (`sweeps/priors.py`)."""
    warm_start: ConfigPath | None = Field(default=None, json_schema_extra=added_in("0.2.0"))
    """Another run's folder: its best settings that the space holds are tried first of all by `tpe` and `nsga2`."""


class ChampionConfig(_Section):
    """The one rule by which a best checkpoint is named."""

    rule: Literal["face_similarity"] = "face_similarity"
    """The highest face similarity among checkpoints that still follow their prompts."""
    prompt_alignment_margin: float = Field(default=0.02, ge=0, le=2)
    """How far below the base model's prompt alignment a checkpoint may lie and still follow its prompts."""
    face_similarity_margin: float = Field(default=0.02, ge=0, le=2)
    """Of confirmed finalists that cannot be told apart, how far below the highest a cheaper one may lie and be the
    choice."""


class ConfirmConfig(_Section):
    """The second stage: the best settings are trained anew, and the champion is named from that.

    What a search finds is the luckiest of many: another training seed moves face similarity more than all pictures of
    one training tell. So the finalists are trained with seeds that the search did not have, and scored with noise and
    on prompts that it did not have.
    """

    finalists: int = Field(default=3, ge=0)
    """Trials, best first by the search; 0 names the champion from the search alone."""
    seeds: int = Field(default=3, ge=2)
    """Trainings of each, with seeds of their own."""
    prompts: list[str] = Field(default_factory=list)
    """Held back from the search; pictures are made for them and for `evaluation.prompts`. Default: the instance prompt
    in places and clothes (`sweeps/confirm.py`)."""
    images_per_prompt: int = Field(default=1, ge=1)
    """Of each training; more prompts tell more than more pictures of each."""


PerMethod = float | dict[str, float] | None
"""One number for all trials, or one for each method's."""


class ResourcesConfig(_Section):
    """What one trial occupies, on one machine; each number for all trials, or as `{lora: 0.5, dreambooth: 2}`."""

    cpus_per_trial: PerMethod = None
    """Of all workers of a trial together. Default: one for each worker."""
    gpus_per_trial: PerMethod = None
    """A part of one GPU, or whole ones: each is a worker's. 0 trains on CPUs. Default: one for each worker where the
    cluster has a GPU or will start machines with one, else 0."""
    workers_per_trial: PerMethod = None
    """Processes that share a trial: each takes its part of every `train_batch_size` and of the pictures. Default: as
    many as it has GPUs, and 1 where it has none or a part of one."""

    pack_size: int = Field(default=8, ge=1)
    """The most LoRA trials that train together, in one pass of the frozen base model; 1 trains each alone. On a large
    GPU it can be raised: what does not fit into one pass is trained in several."""
    autoscaling: bool = False
    """The cluster starts machines on demand: wait for resources that it does not have yet instead of refusing."""

    @field_validator("cpus_per_trial", "gpus_per_trial", "workers_per_trial", mode="before")
    @classmethod
    def _number_or_one_a_method(cls, raw: object) -> object:
        if raw is None or _is_finite_number(raw):
            return raw
        if not isinstance(raw, Mapping):
            raise ValueError(f"must be a number, or a number for each method, got {shorten(raw)}")
        for method, number in raw.items():
            if method not in METHODS:
                raise MisplacedError(str(method), unknown_key(str(method), list(METHODS)))
            if not _is_finite_number(number):
                raise MisplacedError(str(method), f"must be a number, got {shorten(number)}")
        return raw

    @model_validator(mode="after")
    def _laws_for_each_method(self) -> ResourcesConfig:
        for method in METHODS:
            self._check("cpus_per_trial", method, lambda cpus: cpus > 0, "must be more than 0")
            self._check(
                "gpus_per_trial",
                method,
                lambda gpus: 0 <= gpus <= 1 or (gpus > 1 and gpus.is_integer()),
                "must be 0, a part of one GPU, or whole GPUs",
            )
            self._check(
                "workers_per_trial",
                method,
                lambda workers: workers >= 1 and workers.is_integer(),
                "must be a whole number, 1 or more",
            )
            asked = self.of(method)
            if asked.workers is not None and asked.gpus and asked.workers != max(1, asked.gpus):
                raise self._misplaced(
                    "workers_per_trial",
                    method,
                    f"each worker needs a GPU of its own: must be {max(1, asked.gpus):g} with gpus_per_trial "
                    f"{asked.gpus:g}, got {asked.workers:g}",
                )
        return self

    def _check(self, field: str, method: str, law: Callable[[float], bool], text: str) -> None:
        value = _for_method(getattr(self, field), method)
        if value is not None and not law(value):
            raise self._misplaced(field, method, f"{text}, got {value:g}")

    def _misplaced(self, field: str, method: str, law: str) -> MisplacedError:
        return MisplacedError(f"{field}.{method}" if isinstance(getattr(self, field), dict) else field, law)

    def of(self, method: str) -> AskedResources:
        """What is asked for a method's trials; None where nothing is."""
        return AskedResources(
            *(_for_method(each, method) for each in (self.cpus_per_trial, self.gpus_per_trial, self.workers_per_trial))
        )


class ReportConfig(_Section):
    """What report.html shows."""

    show_photos: bool = False
    """Some of the reference photos beside the pictures. The live page never has them."""


@dataclass(frozen=True)
class AskedResources:
    """What the sweep file asks for one trial of a method; None is for the cluster to say."""

    cpus: float | None
    gpus: float | None
    workers: float | None

    @property
    def num_workers(self) -> int:
        """Processes that share a trial, as far as the sweep file says."""
        return int(self.workers or max(1, self.gpus or 0))


def _for_method(value: PerMethod, method: str) -> float | None:
    return value.get(method) if isinstance(value, dict) else value


def _is_finite_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and is_finite(value)


def _resolve_unless_uri(storage: str, info: ValidationInfo) -> str:
    return storage if "://" in storage else str(resolve(storage, info))


class SweepConfig(_Section):
    """Everything a sweep is made of."""

    name: str
    base_model: NameOrPath = Field(min_length=1)
    """Hub id, local diffusers folder, or a single-file `.safetensors` checkpoint."""
    revision: str | None = Field(
        default=None, min_length=1, pattern=r"^[\w.\-/]+$", json_schema_extra=added_in("0.2.0")
    )
    """Branch, tag or commit of a hub id. Default: what its main branch is by then."""
    variant: str | None = Field(default=None, min_length=1, pattern=r"^[\w.\-/]+$", json_schema_extra=added_in("0.2.0"))
    """Which of a hub id's weights, `fp16` for half the download. Default: the plain ones, or fp16 where there are no
    others."""
    clip_skip: int = Field(default=1, ge=1, le=12, json_schema_extra=added_in("0.2.0"))
    """Prompts are read from this layer of the text encoder, counted from its last, as A1111 and kohya count; diffusers'
    `clip_skip` is one less. The same in training, in scoring and in what is exported."""
    initial_weights: ConfigPath | None = Field(default=None, json_schema_extra=added_in("0.2.0"))
    """A LoRA file of diffusers, peft or kohya that LoRA trials go on from. Their rank must be the file's or more."""
    subject: SubjectConfig
    methods: dict[str, dict[str, Value]]
    search: SearchConfig = SearchConfig()
    evaluation: EvaluationConfig
    render: RenderConfig | None = None
    champion: ChampionConfig = ChampionConfig()
    confirm: ConfirmConfig | None = None
    """Default: as many finalists and seeds as cost at most half of the search's trainings, see `sweeps/confirm.py`."""
    report: ReportConfig = ReportConfig()
    resources: ResourcesConfig = ResourcesConfig()
    storage: Annotated[str, AfterValidator(_resolve_unless_uri)] | None = None
    """A folder or fsspec URI (`s3://bucket/prefix`) that every node reaches, where trials are mirrored."""

    @model_validator(mode="before")
    @classmethod
    def _empty_section_is_absent(cls, raw: Any) -> Any:
        return {k: v for k, v in raw.items() if v is not None} if isinstance(raw, Mapping) else raw

    @field_validator("name", mode="after")
    @classmethod
    def _safe_name(cls, name: str) -> str:
        if not NAME_LAW.fullmatch(name):
            raise ValueError(
                f"must be 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first, got {shorten(name)}"
            )
        return name

    @field_validator("methods", mode="before")
    @classmethod
    def _parse_methods(cls, raw: object) -> dict[str, dict[str, Value]]:
        if not isinstance(raw, Mapping) or not raw:
            raise ValueError(f"needs lora, dreambooth or both, got {shorten(raw)}")
        methods = {}
        for method, section in raw.items():
            if method not in METHODS:
                raise MisplacedError(str(method), unknown_key(str(method), list(METHODS)))
            try:
                methods[str(method)] = parse_space(method, section)
            except MisplacedError as error:
                raise MisplacedError(f"{method}.{error.place}".rstrip("."), error.law) from None
        return methods

    @property
    def base(self) -> str:
        """The base model with all that is said of it: the name by which everything that loads it knows it."""
        return str(BaseName(self.base_model, self.revision, self.variant, self.clip_skip))

    @model_validator(mode="after")
    def _laws_between_sections(self) -> SweepConfig:
        self._check_prior_preservation()
        self._check_face_loss_weight()
        if self.initial_weights is not None and "lora" not in self.methods:
            raise MisplacedError(
                "initial_weights", f"is for LoRA trials, and methods has none, got {list(self.methods)}"
            )
        self._check_at_steps()
        self._check_batches()
        self._check_first_trials()
        if self.search.sampler == "grid":
            self._check_grid()
        return self

    def _check_prior_preservation(self) -> None:
        for method, space in self.methods.items():
            if self.subject.class_prompt is None and True in corners_of(space.get("with_prior_preservation", False)):
                place = f"methods.{method}.with_prior_preservation"
                raise MisplacedError(place, "needs subject.class_prompt, which is not given")

    def _check_face_loss_weight(self) -> None:
        for method, space in self.methods.items():
            weights = corners_of(space.get("face_loss_weight", 1.0))
            if self.subject.crop != "face" and any(weight != 1 for weight in weights):
                raise MisplacedError(
                    f"methods.{method}.face_loss_weight",
                    "needs subject.crop: face, by which faces are looked for; else it must be 1, "
                    f"got {shorten(list(weights))}",
                )

    def _check_at_steps(self) -> None:
        at_steps = self.evaluation.at_steps
        if min(at_steps) < 1 or len(set(at_steps)) < len(at_steps):
            raise MisplacedError("evaluation.at_steps", f"must be different steps of 1 or more, got {at_steps}")
        longest = max(largest(space, method, "max_train_steps") for method, space in self.methods.items())
        if max(at_steps) > longest:
            raise MisplacedError(
                "evaluation.at_steps", f"must be reached by a trial, got {max(at_steps)} with max_train_steps {longest}"
            )

    def _check_batches(self) -> None:
        for method, space in self.methods.items():
            workers = self.resources.of(method).num_workers
            batch_size = space.get("train_batch_size", METHODS[method].model_fields["train_batch_size"].default)
            if (odd := indivisible(batch_size, workers)) is not None:
                raise MisplacedError(
                    f"methods.{method}.train_batch_size",
                    f"must be divisible by the {workers} workers that share a trial's batches (resources), got {odd}",
                )

    def _check_first_trials(self) -> None:
        search = self.search
        given = {"priors": search.priors if search.priors != "none" else None, "warm_start": search.warm_start}
        for key, value in given.items():
            if value is not None and search.sampler not in ("tpe", "nsga2"):
                raise MisplacedError(
                    f"search.{key}", f"is for the samplers tpe and nsga2, so it must not be given, got {value}"
                )

    def _check_grid(self) -> None:
        limit = self.search.num_trials or MAX_GRID_TRIALS
        for method, space in self.methods.items():
            for field, value in space.items():
                if isinstance(value, Range) and value.num_points is None:
                    place = f"methods.{method}.{field}"
                    raise MisplacedError(place, f"a grid needs choices, or a range with a step, got {_brief(value)}")
        size = num_combinations(self.methods)
        if size <= MAX_GRID_TRIALS:
            size = sum(1 for _ in grid(self.methods, self.evaluation.at_steps))
        if size > limit:
            raise MisplacedError(
                "search.num_trials",
                f"must hold the whole grid of {size} trials (or use the random sampler), got {limit}",
            )


class ListedSweep(SweepConfig):
    """A stage of a sweep whose trials are given one by one, by the program and not by a file."""

    trainings: tuple[MethodConfig, ...]


def _brief(value: Range | Choices) -> str:
    return shorten(value.model_dump(exclude_none=True, exclude_defaults=True))


def class_images_needed(config: SweepConfig) -> int:
    """The most class images that any trial asks for; 0 where none holds on to such pictures."""
    return max(
        int(largest(space, method, "num_class_images"))
        if True in corners_of(space.get("with_prior_preservation", False))
        and "class_images" in corners_of(space.get("prior_from", "class_images"))
        else 0
        for method, space in config.methods.items()
    )


def rare_token(subject: SubjectConfig) -> str:
    """The words that name the person, which no CLIP model knows.

    Raises:
        UserError: they are not given, and which they are is not certain.
    """
    if subject.rare_token is not None:
        return subject.rare_token
    return guess_rare_token(subject.instance_prompt, subject.class_prompt)


def named_subject(subject: SubjectConfig) -> SubjectConfig:
    """The subject with the rare token that it has, given or guessed.

    Raises:
        UserError: as `rare_token`.
    """
    return subject.model_copy(update={"rare_token": rare_token(subject)})


def trigger_words(subject: SubjectConfig) -> str:
    """What calls the person: the rare token, or the whole instance prompt where an older run left it uncertain."""
    try:
        return rare_token(subject)
    except UserError:
        return subject.instance_prompt


# --- reading -------------------------------------------------------------------------------------------------------


def load_sweep(path: Path | str, overrides: Sequence[str] = (), source: str | None = None) -> SweepConfig:
    """Read a sweep file.

    Args:
        path: the YAML file; relative paths in it are relative to its folder.
        overrides: `a.b=value` each, the value in YAML, applied before validation.
        source: names the file in messages; default: its name without its folder.

    Raises:
        UserError: one line with place, law and value.
    """
    path = Path(path)
    source = source or path.name
    raw = _read_yaml(path, source)
    for override in overrides:
        _apply_override(raw, override)
    raw.pop("versions", None)  # what wrote a run's sweep.yaml; not a setting
    return parse_sweep(raw, source, path.resolve().parent)


def parse_sweep_text(text: str, source: str, folder: Path) -> SweepConfig:
    """Read a sweep file's text that lies nowhere yet.

    Args:
        text: YAML.
        source: names it in messages.
        folder: what relative paths are relative to.

    Raises:
        UserError: one line with place, law and value.
    """
    return parse_sweep(_as_mapping(_load_yaml(text, source), source), source, folder)


def parse_sweep(raw: Mapping[str, Any], source: str = "sweep.yaml", folder: Path | None = None) -> SweepConfig:
    """Validate a sweep given as plain mappings.

    Args:
        raw: the sections.
        source: names them in messages.
        folder: what relative paths are relative to; None leaves them as they are.

    Raises:
        UserError: one line with place, law and value.
    """
    try:
        return SweepConfig.model_validate(raw, context=relative_to(folder) if folder else None)
    except ValidationError as error:
        raise UserError(_message(error, source)) from None


def _message(error: ValidationError, source: str) -> str:
    first = error.errors(include_url=False)[0]
    loc, law = explain(error)
    cause = first.get("ctx", {}).get("error")
    place = ".".join(str(part) for part in loc)
    if isinstance(cause, MisplacedError):
        place, law = ".".join(part for part in (place, cause.place) if part), cause.law
    elif first["type"] == "extra_forbidden":
        law = unknown_key(str(loc[-1]), _known_keys(loc[:-1]))
    return f"{source}:{place}: {law}" if place else f"{source}: {law}"


def _known_keys(loc: Sequence[str | int]) -> list[str]:
    model: type[BaseModel] = SweepConfig
    for part in loc:
        annotation = model.model_fields[str(part)].annotation
        kinds = get_args(annotation) or (annotation,)  # RenderConfig | None
        model = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
    return list(model.model_fields)


class _StrictLoader(yaml.SafeLoader):
    """YAML 1.2's core schema, a key once, shallow nesting, no aliases.

    PyYAML follows YAML 1.1, which reads `no` as false, `12:30` as 750, `010` as 8, `1e-4` as text and `2026-11-25` as a
    date. In 1.2 a word is a word; source: the YAML 1.2.2 specification, section 10.3.2.
    """

    yaml_implicit_resolvers = {}  # noqa: RUF012 -- PyYAML's own; none of 1.1's are kept
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases are not read; write the value out", problem_mark=mark)
        self.depth += 1
        if self.depth > MAX_YAML_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_YAML_DEPTH} levels", problem_mark=mark)
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) is not None:
            problem = f"the tag {event.tag.removeprefix('tag:yaml.org,2002:')} is not read; write the plain value"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {shorten(key.value)} stands twice", problem_mark=key.start_mark
                )
            if isinstance(key.value, str):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_CORE_SCHEMA = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)
"""Beyond the specification, digits may be grouped: `max_train_steps: 1_000` can mean one thing only."""
for _tag, _pattern, _first in _CORE_SCHEMA:
    _StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def _whole_number(loader: _StrictLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node)).replace("_", "")
    return int(text, 0 if text.startswith(("0o", "0x")) else 10)


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _whole_number)


def _load_yaml(text: str, place: str) -> Any:
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 -- a SafeLoader made stricter
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{place}: must be YAML: {error.problem}{line}") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:  # bad characters; dates and numbers out of range
        raise UserError(f"{place}: must be YAML: {str(error).splitlines()[0]}") from None


def _read_yaml(path: Path, source: str) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise UserError(f"{path}: a sweep file has at most {MAX_FILE_BYTES} bytes, got {size}")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: must be UTF-8 text, got byte {error.object[error.start]:#04x}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    return _as_mapping(_load_yaml(text, source), source)


def _as_mapping(raw: Any, source: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise UserError(f"{source}: must be a mapping with name, base_model, subject, ..., got {shorten(raw)}")
    return raw


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise UserError(f"--set {override}: must be written a.b=value")
    section = raw
    for part in parts[:-1]:
        if section.get(part) is None:
            section[part] = {}
        section = section[part]
        if not isinstance(section, dict):
            raise UserError(f"--set {override}: {part} is {shorten(section)}, not a section; set it whole")
    section[parts[-1]] = _load_yaml(text, f"--set {override}")


class _QuotingDumper(yaml.SafeDumper):
    """Quotes a text that either YAML 1.1 or 1.2 would read as something else: `no`, `1e5`, `0o17`."""

    yaml_implicit_resolvers = {  # noqa: RUF012 -- PyYAML's own
        first: [*_StrictLoader.yaml_implicit_resolvers.get(first, []), *resolvers]
        for first, resolvers in {
            **{first: [] for first in _StrictLoader.yaml_implicit_resolvers},
            **yaml.SafeDumper.yaml_implicit_resolvers,
        }.items()
    }


# --- writing -------------------------------------------------------------------------------------------------------


def resolved_yaml(config: SweepConfig) -> str:
    """The whole sweep as YAML that `load_sweep` reads again, and the versions it ran with."""
    dumped = config.model_dump(mode="json")
    dumped["versions"] = installed_versions()
    return yaml.dump(dumped, Dumper=_QuotingDumper, sort_keys=False, allow_unicode=True)


def installed_versions() -> dict[str, str]:
    """Package -> version, of those that decide a sweep's numbers."""
    versions = {}
    for package in VERSIONED_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
