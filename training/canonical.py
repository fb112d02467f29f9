"""What makes two configs the same, for ever: the text that identities are hashed from.

A release that adds a field with a default must not make every older run another experiment. So a field added after
0.1.0 is declared with `added_in`, and is left out where it has its default: a config that does not use it has the
text that it had before the field was there. Ground: it knows nothing else of the project.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from functools import cache
from typing import Any

from pydantic import BaseModel

_ADDED_IN = "added_in"


def added_in(version: str) -> dict[str, Any]:
    """`json_schema_extra` of a field that came with `version`, later than 0.1.0."""
    return {_ADDED_IN: version}


def canonical_json(config: BaseModel, exclude: Set[str] = frozenset()) -> str:
    """The config as JSON in the order of its fields, without `exclude` and without later fields at their default.

    Fields that are configs themselves are taken whole: a config that grows must be hashed by itself.
    """
    unused = {
        name for name, default in _defaults_of_later_fields(type(config)).items() if getattr(config, name) == default
    }
    return config.model_dump_json(exclude={*exclude, *unused})


@cache
def _defaults_of_later_fields(kind: type[BaseModel]) -> Mapping[str, Any]:
    return {
        name: field.get_default(call_default_factory=True)
        for name, field in kind.model_fields.items()
        if isinstance(field.json_schema_extra, dict) and _ADDED_IN in field.json_schema_extra
    }
