"""Schemas of configurations: dataclasses that pydantic checks, and all problems told at once.

Nothing heavy is imported here: a wrong configuration is found before torch is loaded.
"""

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, ClassVar, TypeVar, get_args, get_type_hints

from pydantic import AfterValidator, ConfigDict, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError, core_schema

from dinov3.errors import ExperimentError, did_you_mean

Schema = TypeVar("Schema")


class Section:
    """Base of the dataclasses of a configuration: other keys than their fields, NaN and infinity are errors."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)


class OneOf:
    """In the annotation of a text: one of some names. OmegaConf reads `Literal` only from its version 2.4 on."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __get_pydantic_core_schema__(self, _source: type, _handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Return what pydantic makes of `Literal`."""
        return core_schema.literal_schema(list(self.names))


class ByName:
    """In the annotation of an enumeration: files name its members, as OmegaConf does."""

    def __get_pydantic_core_schema__(
        self, source: type[Enum], _handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """Return what pydantic makes of a literal, and look its member up."""
        names = core_schema.literal_schema(list(source.__members__))
        return core_schema.no_info_after_validator_function(source.__getitem__, names)


def rule(allowed: str, holds: Callable[[Any], bool]) -> AfterValidator:
    """In the annotation of a field: a rule that pydantic has no constraint for.

    Args:
        allowed: the rule in words.
        holds: whether a value keeps it.
    """

    def checked(value: Any) -> Any:
        if not holds(value):
            raise PydanticCustomError("rule", f"Input should be {allowed}")
        return value

    return AfterValidator(checked)


def build(
    schema: type, values: dict[str, Any], source: str, complete: Callable[[Any], Any] = lambda config: config
) -> Any:
    """Make a configuration object of the values, after checking all of them.

    Args:
        schema: the dataclass of the configuration.
        values: nested dictionary.
        source: what to call the configuration in the message.
        complete: what turns an object of the dataclass into the configuration to be used, whose method `problems()`
            yields further messages; by default it is the object itself.

    Returns:
        The configuration to be used, complete with defaults.

    Raises:
        ExperimentError: names every unknown key, wrong type and impossible value, one in a line.
    """
    values = plain(values)
    errors = check(schema, values)
    for error in errors:  # the other values are checked against each other as well
        values = _without(values, error["loc"])
    config = complete(read(schema, values))
    refuse([*(describe(error, schema) for error in errors), *config.problems()], source)
    return config


def read(schema: type[Schema], values: dict[str, Any]) -> Schema:
    """Make an object of a dataclass from values as a file has them, with the defaults for those that it lacks.

    Raises:
        ValidationError: there is an unknown key, a wrong type or an impossible value.
    """
    # as JSON: strict about numbers and texts, but a sequence of any kind is a list, and a mapping may be a dataclass
    return TypeAdapter(schema).validate_json(json.dumps(values, default=repr), strict=True)


def check(schema: type, values: dict[str, Any]) -> list[ErrorDetails]:
    """Return every unknown key, wrong type and impossible value."""
    try:
        read(schema, values)
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


def describe(error: ErrorDetails, schema: type, prefix: str = "") -> str:
    """Say what is wrong: the dotted name of the key, the value found, and what is allowed.

    Args:
        error: one of `check`.
        schema: the dataclass that was checked.
        prefix: what stands before the names of its keys.
    """
    *sections, key = error["loc"]
    name = prefix + _dotted(error["loc"])
    if error["type"] != "unexpected_keyword_argument":
        allowed = error["msg"].replace("a valid array", "a list").replace("an object", "a mapping")  # JSON's words
        return f"{name}: {allowed}, found {error['input']!r}"
    schema = functools.reduce(_section, sections, schema)
    known = [field.name for field in fields(schema)]
    allowed = ", ".join(prefix + _dotted((*sections, other)) for other in known)
    return f"unknown key {name} (value {error['input']!r}){did_you_mean(str(key), known)}; allowed: {allowed}"


def _section(schema: type, name: str) -> type:
    """The dataclass of a field, which may be optional."""
    hint = get_type_hints(schema)[name]
    return next(kind for kind in (hint, *get_args(hint)) if is_dataclass(kind))


def _dotted(location: Sequence[str | int]) -> str:
    """`model.out_layers[1]` of its parts."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")


def plain(values: Any) -> Any:
    """Values as they come back from a JSON file: lists for tuples, texts for keys."""
    return json.loads(json.dumps(values, default=repr))


def _without(values: dict[str, Any], location: Sequence[str | int]) -> dict[str, Any]:
    """Nested values without the one at a location, or without the list that it stands in."""
    key, *inner = location
    if inner and isinstance(values.get(key), dict):
        return {**values, key: _without(values[key], inner)}
    return {other: value for other, value in values.items() if other != key}


def refuse(problems: Iterable[str], source: str) -> None:
    """Tell all problems of a configuration, if there are any.

    Raises:
        ExperimentError: one problem in a line.
    """
    lines = [str(problem) for problem in problems]
    if len(lines) == 1:
        raise ExperimentError(f"{source}: {lines[0]}")
    if lines:
        raise ExperimentError("\n".join([f"{source} has {len(lines)} problems:", *lines]))
