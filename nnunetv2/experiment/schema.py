"""Configuration files: dataclass fields with their rules, reading, merging, and all problems told at once.

Nothing heavy is imported here: a wrong configuration is found before torch is loaded.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

import nnunetv2
from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.model.backbone_families import did_you_mean

PACKAGE = Path(nnunetv2.__path__[0])
BASE_KEY = "base"  # of a YAML file: the configuration that it changes
CONFIG_FOLDERS = (PACKAGE / "configs", PACKAGE / "training" / "nnUNetTrainer" / "configs")
Schema = TypeVar("Schema")


@dataclass(frozen=True)
class Rule:
    """What a field may hold.

    Attributes:
        text: the rule in words, for messages and the configuration reference.
        holds: whether a value keeps it; never None, unless the field takes `Any`.
    """

    text: str
    holds: Callable[[Any], bool]


def one_of(*names: str) -> Rule:
    """One of some names."""
    return Rule(", ".join(names), lambda value: value in names)


def at_least(minimum: float) -> Rule:
    """A finite number not below a minimum."""
    return Rule(f"at least {minimum:g}", lambda value: minimum <= value < math.inf)


def above(limit: float) -> Rule:
    """A finite number greater than a limit."""
    return Rule(f"above {limit:g}", lambda value: limit < value < math.inf)


def within(low: float, high: float) -> Rule:
    """A number from `low` (included) to `high` (excluded)."""
    return Rule(f"in [{low:g}, {high:g})", lambda value: low <= value < high)


def option(default: Any, text: str, rule: Rule | None = None) -> Any:
    """A dataclass field with a description and a rule; lists, dicts and nested configurations are made anew each time.

    Args:
        default: the default value, or a dataclass for a nested configuration.
        text: what the field is for, as the configuration reference prints it.
        rule: what the field may hold, beyond its type.
    """
    metadata = {"text": text, "rule": rule}
    if isinstance(default, (type, list, dict)):
        factory = default if isinstance(default, type) else lambda: type(default)(default)
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


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
    return OmegaConf.merge(_read_merged(base_path, chain), values)


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
    config = OmegaConf.structured(schema)
    problems = list(_assign(config, schema, values, ""))
    result = OmegaConf.to_object(config)
    stored = result.stored()
    refuse([*problems, *_broken_rules(result, ""), *stored.problems()], source)
    return stored


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


def restore(schema: type[Schema], values: dict[str, Any]) -> Schema:
    """Make a configuration object of values that were checked when the plans were derived.

    Files that were needed then, such as pretrained weights, may be gone.
    """
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))


def as_stored(config: Any) -> dict[str, Any]:
    """A configuration object as it stands in the plans, which must not depend on where a command is run."""
    stored = asdict(config)
    if config.model.checkpoint_path:
        path = Path(config.model.checkpoint_path).expanduser()
        # not the file itself: what an index of shards links to, as in the hub's cache, lies in another folder
        stored["model"]["checkpoint_path"] = str(path.parent.resolve() / path.name)
    return stored


def load_config(schema: type, name_or_path: str, overrides: Sequence[str] = ()) -> Any:
    """Read, merge and check a configuration (see `find_config`, `read_values`, `build`)."""
    return build(schema, read_values(find_config(name_or_path), overrides), name_or_path)


def _assign(config: DictConfig, schema: type, values: dict[str, Any], prefix: str) -> Iterator[str]:
    """Write values into a structured configuration and yield what cannot be written."""
    known = {f.name: f for f in fields(schema)}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in known:
            allowed = ", ".join(prefix + k for k in known)
            yield f"unknown key {name} (value {value!r}){did_you_mean(str(key), known)}; allowed: {allowed}"
        elif is_dataclass(known[key].default_factory):
            if isinstance(value, dict):
                yield from _assign(config[key], known[key].default_factory, value, f"{name}.")
            else:
                yield f"{name} must be a mapping, found {value!r}"
        else:
            yield from _assign_leaf(config, known[key], value, name)


def _assign_leaf(config: DictConfig, leaf: Field, value: Any, name: str) -> Iterator[str]:
    try:
        if "bool" in type_text(leaf.type) and not isinstance(value, (bool, type(None))):
            raise ValidationError  # omegaconf takes any number for a truth value
        OmegaConf.update(config, leaf.name, value, merge=False)
    except OmegaConfBaseException:
        yield f"{name} must be {type_text(leaf.type)}, found {value!r}"


def _broken_rules(config: Any, prefix: str) -> Iterator[str]:
    for leaf in fields(config):
        value = getattr(config, leaf.name)
        rule = leaf.metadata["rule"]
        if is_dataclass(value):
            yield from _broken_rules(value, f"{prefix}{leaf.name}.")
        elif rule is not None and (value is not None or leaf.type is Any) and not rule.holds(value):
            yield f"{prefix}{leaf.name} must be {rule.text}, found {value!r}"


def type_text(annotation: Any) -> str:
    """A field's type in words: `int`, `float or null`, `list of int`."""
    text = str(annotation) if not isinstance(annotation, type) or "[" in str(annotation) else annotation.__name__
    text = text.replace("typing.", "").replace("Optional[", "").replace("dict[str, Any]", "mapping")
    optional = "Optional" in str(annotation) or "None" in str(annotation)
    text = text.replace(" | None", "").replace("list[", "list of ").replace("]", "")
    return f"{text} or null" if optional else text


def default_of(leaf: Field) -> Any:
    """The default value of a field."""
    return leaf.default if leaf.default is not MISSING else leaf.default_factory()
