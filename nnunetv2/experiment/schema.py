"""Configuration files: reading, merging, checking by pydantic, and all problems told at once.

Nothing heavy is imported here: a wrong configuration is found before torch is loaded.
"""

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, ConfigDict, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError, core_schema

import nnunetv2
from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.model.backbone_families import did_you_mean

PACKAGE = Path(nnunetv2.__path__[0])
BASE_KEY = "base"  # of a YAML file: the configuration that it changes
CONFIG_FOLDERS = (PACKAGE / "configs", PACKAGE / "training" / "nnUNetTrainer" / "configs")
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


def packaged_configs() -> list[str]:
    """Names of the packaged configurations, without `.yaml`."""
    return sorted(_packaged())


def _packaged() -> dict[str, Path]:
    return {path.stem: path for folder in CONFIG_FOLDERS for path in folder.glob("*.yaml")}


def find_file(name: str, folder: Path = Path()) -> Path | None:
    """Return the path of a file, `~` expanded; None if there is no such file, or it cannot be one's name.

    Args:
        name: the path, absolute or relative to `folder`.
        folder: by default the working directory.
    """
    path = find_path(name, folder)
    return path if path is not None and path.is_file() else None


def find_path(name: str, folder: Path = Path()) -> Path | None:
    """Return the path of a file or folder, as `find_file` does of a file."""
    try:
        path = folder / Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long, an unknown user, a zero byte
        return None


def find_config(name_or_path: str, folder: Path = Path()) -> Path:
    """Return the path of a packaged configuration, or of a YAML file of the user's own.

    Args:
        name_or_path: name of a packaged configuration, or a path, absolute or relative to `folder`.
        folder: by default the working directory.

    Raises:
        ExperimentError: there is neither.
    """
    packaged = _packaged()
    path = packaged.get(name_or_path) or find_file(name_or_path, folder)
    if path is None:
        names = sorted(packaged)
        raise ExperimentError(
            f"configuration {name_or_path!r} not found{did_you_mean(name_or_path, names)}; allowed: a path to a YAML "
            f"file, or one of {', '.join(names)}"
        )
    return path


def config_source(name_or_path: str) -> str:
    """Return the name of a packaged configuration, or the absolute path of a YAML file of the user's own."""
    return name_or_path if name_or_path in _packaged() else str(Path(name_or_path).expanduser().absolute())


def read_values(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML file and the bases that it names, and apply overrides, without checking them against a schema.

    Args:
        path: the YAML file.
        overrides: strings such as `train.num_epochs=50`; values are read as YAML.

    Returns:
        Nested dictionary of the values given.

    Raises:
        ExperimentError: a file is no YAML mapping, a base does not exist or is based on itself, or an override has no
            `=`.
    """
    for override in overrides:
        key, _, value = override.partition("=")
        if not key.strip() or value.strip() in ("", "???"):
            raise ExperimentError(f"override {override!r} is not of the form key=value, such as train.num_epochs=50")
    try:
        config = _read_merged(path)
        OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ExperimentError(f"cannot read {path} as YAML: {' '.join(str(error).split())}") from error
    try:
        merged = OmegaConf.merge(config, OmegaConf.from_dotlist(list(overrides)))
        return OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except (yaml.YAMLError, OmegaConfBaseException, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ExperimentError(f"the overrides {' '.join(overrides)} do not fit {path.name}: {reason}") from error


def _read_merged(path: Path, derived: tuple[Path, ...] = ()) -> DictConfig:
    """Read a YAML file, merged into the configuration that its key `base` names, if there is one.

    Args:
        path: the YAML file.
        derived: files based on this one, the one that was asked for first.
    """
    values = _read_yaml(path)
    base = values.pop(BASE_KEY, None)
    if base is None:
        return OmegaConf.create(values)
    if not isinstance(base, str):
        raise ExperimentError(
            f"{path}: {BASE_KEY} must be a packaged configuration or a path to a YAML file, found {base!r}"
        )
    try:
        base_path = find_config(base, path.parent)
    except ExperimentError as error:
        raise ExperimentError(f"{path}: {BASE_KEY}: {error}") from error
    chain = (*derived, path)
    if any(base_path.samefile(file) for file in chain):
        raise ExperimentError(f"{path}: {BASE_KEY} must not lead back to a file that is based on it, found {base!r}")
    merged = _read_merged(base_path, chain)
    try:
        return OmegaConf.merge(merged, values)
    except (OmegaConfBaseException, TypeError, ValueError) as error:  # such as a list for a mapping
        raise ExperimentError(f"{path} does not fit its {BASE_KEY} {base!r}: {' '.join(str(error).split())}") from error


def _read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file; interpolations stay as they are written."""
    try:
        config = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError, RecursionError) as error:
        raise ExperimentError(f"cannot read {path} as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, DictConfig):
        raise ExperimentError(f"{path} must hold a mapping of keys to values, found {type(config).__name__}")
    if not config:
        raise ExperimentError(f"{path} is empty; a configuration has the keys model, lora and train")
    return OmegaConf.to_container(config)


def build(schema: type, values: dict[str, Any], source: str) -> Any:
    """Make a configuration object of the values, after checking all of them.

    Args:
        schema: the dataclass of the configuration. Its method `stored()` gives the configuration that goes into the
            plans, whose method `problems()` may yield further messages.
        values: nested dictionary.
        source: what to call the configuration in the message.

    Returns:
        The object that goes into the plans, complete with defaults.

    Raises:
        ExperimentError: names every unknown key, wrong type and impossible value, one in a line.
    """
    values = plain(values)
    errors = check(schema, values)
    for error in errors:  # the other values are checked against each other as well
        values = _without(values, error["loc"])
    stored = read(schema, values).stored()
    refuse([*(describe(error, schema) for error in errors), *stored.problems()], source)
    return stored


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
    schema = functools.reduce(lambda section, name: _nested(section)[name], sections, schema)
    known = [field.name for field in fields(schema)]
    allowed = ", ".join(prefix + _dotted((*sections, other)) for other in known)
    return f"unknown key {name} (value {error['input']!r}){did_you_mean(str(key), known)}; allowed: {allowed}"


def _nested(schema: type) -> dict[str, type]:
    return {field.name: field.default_factory for field in fields(schema)}


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


def load_config(schema: type, name_or_path: str, overrides: Sequence[str] = ()) -> Any:
    """Read, merge and check a configuration (see `find_config`, `read_values`, `build`)."""
    return build(schema, read_values(find_config(name_or_path), overrides), name_or_path)
