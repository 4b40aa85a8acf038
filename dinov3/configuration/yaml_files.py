"""Configuration files: packaged ones and the user's own, which may extend each other, with overrides."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dinov3.errors import ExperimentError, did_you_mean

BASE_KEY = "base"  # in a YAML file: the configuration that it extends


def find_file(name: str, folder: Path = Path()) -> Path | None:
    """Return the path of a file, with `~` expanded; None if it does not exist or the name is impossible.

    Args:
        name: the path, absolute or relative to `folder`.
        folder: by default the working directory.
    """
    path = find_path(name, folder)
    return path if path is not None and path.is_file() else None


def find_path(name: str, folder: Path = Path()) -> Path | None:
    """Like `find_file`, for a file or a folder."""
    try:
        path = folder / Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long, an unknown user, a null byte
        return None


@dataclass(frozen=True)
class ConfigFiles:
    """The configurations of a package, and how to read them.

    Attributes:
        folders: the folders of the packaged files.
        keys: the main keys of a configuration, in words, for messages.
        example: an override, for messages.
    """

    folders: tuple[Path, ...]
    keys: str
    example: str

    def packaged(self) -> dict[str, Path]:
        """Names of the packaged configurations, without `.yaml`, and their paths."""
        return {path.stem: path for folder in self.folders for path in folder.glob("*.yaml")}

    def names(self) -> list[str]:
        """Sorted names of the packaged configurations, without `.yaml`."""
        return sorted(self.packaged())

    def find(self, name_or_path: str, folder: Path = Path()) -> Path:
        """Return the path of a packaged configuration, or of a YAML file of the user's own.

        Args:
            name_or_path: name of a packaged configuration, or a path, absolute or relative to `folder`.
            folder: by default the working directory.

        Raises:
            ExperimentError: neither exists.
        """
        packaged = self.packaged()
        path = packaged.get(name_or_path) or find_file(name_or_path, folder)
        if path is None:
            names = sorted(packaged)
            raise ExperimentError(
                f"configuration {name_or_path!r} not found{did_you_mean(name_or_path, names)}; allowed: a path to a "
                f"YAML file, or one of {', '.join(names)}"
            )
        return path

    def source(self, name_or_path: str) -> str:
        """Return the name of a packaged configuration, or the absolute path of a YAML file of the user's own."""
        return name_or_path if name_or_path in self.packaged() else str(Path(name_or_path).expanduser().absolute())

    def read(self, path: Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
        """Read a YAML file and its bases, and apply overrides, without checking them against a schema.

        Args:
            path: the YAML file; None: the overrides alone.
            overrides: strings such as `bs=2`; values are read as YAML.

        Returns:
            Nested dictionary of the values given.

        Raises:
            ExperimentError: a file is not a YAML mapping, a base does not exist or extends itself, or an override has
                no `=` or no value.
        """
        for override in overrides:
            key, equals, value = override.partition("=")
            if not key.strip() or value.strip() in ("", "???"):  # OmegaConf's mark of a missing value
                reason = " (the value is missing)" if key.strip() and equals else ""
                raise ExperimentError(
                    f"override {override!r} is not of the form key=value{reason}, such as {self.example}"
                )
        try:
            config = OmegaConf.create() if path is None else self._read_merged(path)
            OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            raise ExperimentError(f"cannot read {path} as YAML: {' '.join(str(error).split())}") from error
        try:
            merged = OmegaConf.merge(config, OmegaConf.from_dotlist(list(overrides)))
            return OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
        except (yaml.YAMLError, OmegaConfBaseException, TypeError, ValueError) as error:
            fit = "cannot be read" if path is None else f"do not fit {path.name}"
            reason = " ".join(str(error).split())
            raise ExperimentError(f"the overrides {' '.join(overrides)} {fit}: {reason}") from error

    def _read_merged(self, path: Path, derived: tuple[Path, ...] = ()) -> DictConfig:
        """Read a YAML file, merged into the configuration that its key `base` names, if any.

        Args:
            path: the YAML file.
            derived: the files that extend this one, starting with the one requested.
        """
        values = self._read_yaml(path)
        base = values.pop(BASE_KEY, None)
        if base is None:
            return OmegaConf.create(values)
        if not isinstance(base, str):
            raise ExperimentError(
                f"{path}: {BASE_KEY} must be a packaged configuration or a path to a YAML file, found {base!r}"
            )
        try:
            base_path = self.find(base, path.parent)
        except ExperimentError as error:
            raise ExperimentError(f"{path}: {BASE_KEY}: {error}") from error
        chain = (*derived, path)
        if any(base_path.samefile(file) for file in chain):
            raise ExperimentError(
                f"{path}: {BASE_KEY} must not lead back to a file that is based on it, found {base!r}"
            )
        merged = self._read_merged(base_path, chain)
        try:
            return OmegaConf.merge(merged, values)
        except (OmegaConfBaseException, TypeError, ValueError) as error:  # such as a list for a mapping
            reason = " ".join(str(error).split())
            raise ExperimentError(f"{path} does not fit its {BASE_KEY} {base!r}: {reason}") from error

    def _read_yaml(self, path: Path) -> dict[str, Any]:
        """Read a YAML file, leaving interpolations unresolved."""
        try:
            config = OmegaConf.load(path)
        except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError, RecursionError) as error:
            raise ExperimentError(f"cannot read {path} as YAML: {' '.join(str(error).split())}") from error
        if not isinstance(config, DictConfig):
            raise ExperimentError(f"{path} must hold a mapping of keys to values, found {type(config).__name__}")
        if not config:
            raise ExperimentError(f"{path} is empty; a configuration has the keys {self.keys}")
        return OmegaConf.to_container(config)
