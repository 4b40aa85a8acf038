"""The versions that a fold was trained with: `versions.json` in its results folder, one entry per start or resume."""

import platform
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.experiment.plans import differences_between, listed, read_json, write_json

FILE = "versions.json"
DISTRIBUTIONS = ("torch", "timm", "transformers", "peft", "nnunetv2", "nnunet-vit")


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that a training depends on."""
    return {"python": platform.python_version(), **{name: version(name) for name in DISTRIBUTIONS}}


def record_versions(folder: Path, epoch: int) -> str:
    """Append the versions in use to the file of a fold.

    Args:
        folder: results folder of the fold.
        epoch: the epoch that comes next; above 0 a training is resumed.

    Returns:
        The versions in one line, and what has changed since the session that is resumed.
    """
    sessions, versions = read_sessions(folder), installed_versions()
    session = {"start": datetime.now().isoformat(timespec="seconds"), "epoch": epoch, "versions": versions}
    write_json(folder / FILE, [*sessions, session])
    line = "Versions: " + ", ".join(f"{name} {number}" for name, number in versions.items())
    differences = list(differences_between(sessions[-1]["versions"], versions)) if sessions and epoch > 0 else []
    if not differences:
        return line
    return (
        f"{line}\nWARNING: the training is resumed with other versions than before (then → now):\n{listed(differences)}"
    )


def read_sessions(folder: Path) -> list[dict[str, Any]]:
    """Read the sessions of a fold: `start`, `epoch` and `versions` of each; an unreadable file counts as none."""
    path = folder / FILE
    try:
        sessions = read_json(path) if path.is_file() else []
    except ExperimentError:
        return []
    are_sessions = isinstance(sessions, list) and all(isinstance(s, dict) and "versions" in s for s in sessions)
    return sessions if are_sessions else []
