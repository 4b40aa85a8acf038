"""Groups of cases, such as the images of a patient: a CSV file, or a mapping in a configuration."""

import csv
from pathlib import Path
from typing import Any

from nnunetv2.experiment.errors import ExperimentError

COLUMNS = ("case", "group")


def are_groups(value: Any) -> bool:
    """Whether a value of a configuration is None, the path of a CSV file, or a mapping of cases to groups."""
    if value is None:
        return True
    texts = value.values() if isinstance(value, dict) else [value]
    return all(isinstance(text, str) and text for text in texts)


def read_groups(path: Path) -> dict[str, str]:
    """Read a CSV file with the columns `case` and `group`, such as the patient that an image is of.

    Raises:
        ExperimentError: it is not such a file, or a case has no group, or two.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            header, rows = reader.fieldnames or [], list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ExperimentError(f"cannot read the groups {path}: {error}") from error
    if not set(COLUMNS) <= set(header):
        raise ExperimentError(f"{path} needs a first line with the columns {', '.join(COLUMNS)}, found {header}")
    groups: dict[str, str] = {}
    for row in rows:
        case, group = (str(row[column] or "").strip() for column in COLUMNS)
        if not case or not group:
            raise ExperimentError(
                f"{path}: every line needs a case and its group, found case {case!r}, group {group!r}"
            )
        if groups.setdefault(case, group) != group:
            raise ExperimentError(f"{path}: case {case!r} is in two groups, {groups[case]!r} and {group!r}")
    return groups
