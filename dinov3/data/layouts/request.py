"""The part of a data set to be found, and what the layouts share in looking for it."""

from pathlib import Path
from typing import NamedTuple

SPLITS = ("TRAIN", "VAL")


class Part(NamedTuple):
    """The training or the validation part of a data set.

    Attributes:
        split: one of `SPLITS`.
        val_share: share of the images for validation, where the split is drawn.
        seed: of the split, where it is drawn.
    """

    split: str
    val_share: float
    seed: int


def subfolders(folder: Path) -> list[str]:
    """Return the names of the subfolders of a folder, except hidden ones."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
