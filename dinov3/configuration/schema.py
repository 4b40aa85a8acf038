"""Schemas of configurations: dataclasses that pydantic checks; all problems are reported at once.

This module imports nothing heavy: a wrong configuration is reported before torch is loaded.
"""

import difflib
import functools
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, ClassVar, TypeVar, get_args, get_type_hints

from pydantic import AfterValidator, ConfigDict, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError, core_schema

from dinov3.errors import ExperimentError, did_you_mean

Schema = TypeVar("Schema")


class Section:
    """Base of the dataclasses of a configuration: unknown keys, NaN and infinity are errors."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)


class OneOf:
    """Annotates a string that must be one of the given names; OmegaConf supports `Literal` only from version 2.4 on."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __get_pydantic_core_schema__(self, _source: type, _handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Return the pydantic schema of the equivalent `Literal`."""
        return core_schema.literal_schema(list(self.names))


class ByName:
    """Annotates an enumeration whose members are given by name in files, as in OmegaConf."""

    def __get_pydantic_core_schema__(
        self, source: type[Enum], _handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """Return the pydantic schema of the names, which are converted to members."""
        names = core_schema.literal_schema(list(source.__members__))
        return core_schema.no_info_after_validator_function(source.__getitem__, names)


class Problem(str):
    """A message about a combination of values, which is dropped if one of these values is wrong in itself.

    Attributes:
        keys: dotted names of the keys whose values were compared.
    """

    keys: tuple[str, ...]

    def __new__(cls, message: str, keys: Iterable[str]) -> "Problem":
        """Attach the keys to a message."""
        problem = super().__new__(cls, message)
        problem.keys = tuple(keys)
        return problem


def rule(allowed: str, holds: Callable[[Any], bool]) -> AfterValidator:
    """Annotates a field with a rule for which pydantic has no constraint.

    Args:
        allowed: the rule in words.
        holds: whether a value satisfies it.
    """

    def checked(value: Any) -> Any:
        if not holds(value):
            raise PydanticCustomError("rule", f"Input should be {allowed}")
        return value

    return AfterValidator(checked)


def build(
    schema: type, values: dict[str, Any], source: str, complete: Callable[[Any], Any] = lambda config: config
) -> Any:
    """Make a configuration object from values, after checking all of them.

    Args:
        schema: the dataclass of the configuration.
        values: nested dictionary.
        source: name of the configuration in the message.
        complete: turns an object of the dataclass into the configuration to use, whose method `problems()` yields
            further messages (see `Problem`); by default the object itself.

    Returns:
        The configuration to be used, complete with defaults.

    Raises:
        ExperimentError: names every unknown key, wrong type and impossible value, one per line.
    """
    values = plain(values)
    errors = check(schema, values)
    for error in errors:  # the remaining values are still checked against each other
        values = _without(values, error["loc"])
    config = complete(read(schema, values))
    failed = [_dotted(itertools.takewhile(lambda part: isinstance(part, str), error["loc"])) for error in errors]
    combinations = (problem for problem in config.problems() if not _depends_on(problem, failed))
    refuse([*(describe(error, schema) for error in errors), *combinations], source)
    return config


def _depends_on(problem: str, failed: Iterable[str]) -> bool:
    """Whether a problem was found with the default of a key, or of its section, in place of the wrong value."""
    keys = getattr(problem, "keys", ())
    return any(key == name or key.startswith(f"{name}.") for key in keys for name in failed)


def read(schema: type[Schema], values: dict[str, Any]) -> Schema:
    """Make an object of a dataclass from the values of a file, with defaults for the missing ones.

    Raises:
        ValidationError: there is an unknown key, a wrong type or an impossible value.
    """
    # as JSON: strict about numbers and strings, but any sequence is a list, and a mapping may become a dataclass
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
        error: an error that `check` returned.
        schema: the dataclass that was checked.
        prefix: put before the names of its keys.
    """
    *sections, key = error["loc"]
    name = prefix + _dotted(error["loc"])
    if error["type"] != "unexpected_keyword_argument":
        return f"{name}: {_allowed(error)}, found {error['input']!r}{_nearest(error)}"
    schema = functools.reduce(_section, sections, schema)
    known = [field.name for field in fields(schema)]
    allowed = ", ".join(prefix + _dotted((*sections, other)) for other in known)
    return f"unknown key {name} (value {error['input']!r}){did_you_mean(str(key), known)}; allowed: {allowed}"


def _allowed(error: ErrorDetails) -> str:
    """What is allowed, in the words of YAML rather than JSON."""
    if error["type"] == "float_type" and _is_not_finite(error["input"]):  # YAML reads `nan` and `inf` as strings
        return "Input should be a finite number"
    return error["msg"].replace("a valid array", "a list").replace("an object", "a mapping")


def _is_not_finite(value: Any) -> bool:
    try:
        return isinstance(value, str) and not math.isfinite(float(value))
    except ValueError:
        return False


def _nearest(error: ErrorDetails) -> str:
    """Return ` (did you mean 'x'?)` if one of some allowed names is close to the one found, in upper or lower case."""
    if error["type"] != "literal_error" or not isinstance(error["input"], str):
        return ""
    names = {name.casefold(): name for name in re.findall(r"'([^']*)'", error["ctx"]["expected"])}
    matches = difflib.get_close_matches(error["input"].casefold(), names, n=1)
    return f" (did you mean {names[matches[0]]!r}?)" if matches else ""


def _section(schema: type, name: str) -> type:
    """The dataclass of a field, which may be optional."""
    hint = get_type_hints(schema)[name]
    return next(kind for kind in (hint, *get_args(hint)) if is_dataclass(kind))


def _dotted(location: Iterable[str | int]) -> str:
    """Join the parts of a key, as in `model.out_layers[1]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")


def plain(values: Any) -> Any:
    """Return values as a JSON file would hold them: lists for tuples, strings for keys."""
    return json.loads(json.dumps(values, default=repr))


def _without(values: dict[str, Any], location: Sequence[str | int]) -> dict[str, Any]:
    """Return nested values without the one at a location, or without the list that contains it."""
    key, *inner = location
    if inner and isinstance(values.get(key), dict):
        return {**values, key: _without(values[key], inner)}
    return {other: value for other, value in values.items() if other != key}


def refuse(problems: Iterable[str], source: str) -> None:
    """Report all problems of a configuration, if there are any.

    Raises:
        ExperimentError: one problem per line.
    """
    lines = [str(problem) for problem in problems]
    if len(lines) == 1:
        raise ExperimentError(f"{source}: {lines[0]}")
    if lines:
        raise ExperimentError("\n".join([f"{source} has {len(lines)} problems:", *lines]))
