"""The known layouts of data sets, and the values of `datasets.train` and `datasets.val`."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dinov3.data.layouts import ade20k, cityscapes, folder
from dinov3.data.layouts.request import SPLITS, Part, subfolders
from dinov3.data.pairs import ImagePair, counted
from dinov3.errors import ExperimentError


class Layout(NamedTuple):
    """The folder structure of a kind of data set.

    Attributes:
        folders: the folders below the root, for messages.
        is_at: whether a root has this structure.
        find: finds the pairs of a part below a root.
    """

    folders: str
    is_at: Callable[[Path], bool]
    find: Callable[[Path, Part], list[ImagePair]]


LAYOUTS = {
    "ADE20K": Layout(ade20k.FOLDERS, ade20k.is_at, ade20k.find),
    "CITYSCAPES": Layout(cityscapes.FOLDERS, cityscapes.is_at, cityscapes.find),
    "FOLDER": Layout(folder.FOLDERS, folder.is_at, folder.find),
}


def recognise(root: Path) -> str:
    """Return the name of the layout below a root.

    Raises:
        ExperimentError: the layout is not a known one.
    """
    for name, layout in LAYOUTS.items():
        if layout.is_at(root):
            return name
    known = "; ".join(f"{name}: {layout.folders}" for name, layout in LAYOUTS.items())
    raise ExperimentError(
        f"no data set was recognised below datasets.root={root}, which must have the folders of {known}; "
        f"found {counted(subfolders(root), 'subfolder')}"
    )


def parse(text: str, key: str) -> tuple[str, str]:
    """Split the name of a part of a data set, such as `ADE20K:split=TRAIN`, into layout and split.

    Args:
        text: the name.
        key: the key of the configuration that holds it, for messages.

    Returns:
        The layout and the split.

    Raises:
        ExperimentError: the layout or the split is unknown.
    """
    layout, _, split = text.partition(":split=")
    if layout not in LAYOUTS or split not in SPLITS:
        allowed = ", ".join(f"{name}:split={split}" for name in LAYOUTS for split in SPLITS)
        raise ExperimentError(f"{key} must be one of {allowed}, or empty to recognise the layout, found {text!r}")
    return layout, split
