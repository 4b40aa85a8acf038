"""The plans file of an experiment: its name, reading, comparing and writing it in one piece."""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nnunetv2.training.experiment.errors import ExperimentError

EXPERIMENT_KEY = "vit"  # the resolved experiment configuration, within a configuration of the plans
MAX_DIFFERENCES = 10


def check_name(name: str) -> None:
    """Check the name of an experiment, which becomes part of file and folder names.

    Raises:
        ExperimentError: it is empty or holds `/` or `__`, at which nnU-Net splits folder names.
    """
    if not name or "/" in name or "\\" in name or "__" in name or name.strip() != name:
        raise ExperimentError(f"experiment name {name!r} is not allowed: not empty, without '/', '__' and outer spaces")


def read_plans(folder: Path, plans_name: str) -> dict[str, Any]:
    """Read a plans file of a preprocessed data set.

    Raises:
        ExperimentError: there is none of this name, or it is no JSON; the message lists those that exist.
    """
    path = folder / f"{plans_name}.json"
    if not path.is_file():
        existing = sorted(p.stem for p in folder.glob("*.json") if "lans" in p.stem)
        raise ExperimentError(f"plans {plans_name!r} not found in {folder}; existing: {', '.join(existing) or 'none'}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ExperimentError(f"{path} is not a valid JSON file: {error}") from error


def planar_configurations(plans: dict[str, Any]) -> list[str]:
    """Names of the 2D configurations of the plans."""
    return [name for name in plans["configurations"] if len(resolve(plans, name).get("patch_size", ())) == 2]


def resolve(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """Return a configuration of the plans with all that it inherits."""
    own = plans["configurations"][configuration]
    parent = own.get("inherits_from")
    merged = {**resolve(plans, parent), **own} if parent else dict(own)
    merged.pop("inherits_from", None)
    return merged


def check_configuration(plans: dict[str, Any], configuration: str) -> None:
    """Check that the plans hold a configuration, and that it is a 2D one.

    Raises:
        ExperimentError: names the 2D configurations that exist.
    """
    planar = planar_configurations(plans)
    if configuration not in planar:
        found = "is not a 2D configuration" if configuration in plans["configurations"] else "does not exist"
        raise ExperimentError(
            f"configuration {configuration!r} {found} in the plans {plans['plans_name']!r}; ViTs work on 2D images, "
            f"allowed: {', '.join(planar) or 'none (plan with -c 2d first)'}"
        )


def write_new_plans(folder: Path, plans: dict[str, Any]) -> Path:
    """Write derived plans, unless the same are there already; never change a file that is there.

    Returns:
        The path of the plans file.

    Raises:
        ExperimentError: a plans file of this name holds another experiment; the message shows the difference.
    """
    path = folder / f"{plans['plans_name']}.json"
    if path.is_file():
        differences = list(_differences(read_plans(folder, plans["plans_name"]), json.loads(json.dumps(plans))))
        if not differences:
            return path
        shown = "\n".join(f"  {line}" for line in differences[:MAX_DIFFERENCES])
        more = f"\n  … and {len(differences) - MAX_DIFFERENCES} more" if len(differences) > MAX_DIFFERENCES else ""
        raise ExperimentError(
            f"{path.name} holds another experiment (there → now):\n{shown}{more}\n"
            f"the plans name {plans['plans_name']!r} is taken: choose another with --name"
        )
    _write_json(path, plans)
    return path


def _write_json(path: Path, content: dict[str, Any]) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=4)
        os.chmod(temporary, 0o644)  # mkstemp's files are private, plans are shared
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(
                old.get(key, "(absent)"), new.get(key, "(absent)"), f"{name}.{key}" if name else key
            )
    elif old != new:
        yield f"{name}: {old!r} → {new!r}"
