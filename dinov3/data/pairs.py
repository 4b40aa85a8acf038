"""Finding the files of images and labels, and pairing them by name."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from dinov3.errors import ExperimentError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
LOSSY_SUFFIXES = (".jpg", ".jpeg", ".webp")  # compression changes the numbers of labels


class ImagePair(NamedTuple):
    """An image with its labels.

    Attributes:
        name: its name in messages and figures.
        image: the image file.
        labels: its label file.
    """

    name: str
    image: Path
    labels: Path


def stem_of(path: Path) -> str:
    """Return the name of a file without its suffix."""
    return path.stem


def files_of(folder: Path, suffixes: Collection[str], pattern: str = "*") -> list[Path]:
    """List the files of a folder that have one of the suffixes (in upper or lower case), except hidden files.

    Raises:
        ExperimentError: there is no such folder.
    """
    if not folder.is_dir():
        raise ExperimentError(f"the folder {folder} does not exist")
    found = (path for path in folder.glob(pattern) if path.suffix.lower() in suffixes and path.is_file())
    return sorted(path for path in found if not path.name.startswith("."))


def pair_up(
    images: Iterable[Path],
    labels: Iterable[Path],
    where: tuple[Path, Path],
    name_of: Callable[[Path], str] = stem_of,
) -> list[ImagePair]:
    """Pair images with the labels of the same name, sorted by name.

    Args:
        images: image files.
        labels: label files.
        where: folders of the images and of the labels, for messages.
        name_of: returns the name by which an image or label file is paired.

    Raises:
        ExperimentError: there are no images, a name is not unique, or an image has no labels or labels have no image.
    """
    images_by_name, labels_by_name = (
        _by_name(files, name_of, folder) for files, folder in zip((images, labels), where, strict=True)
    )
    if not images_by_name:
        raise ExperimentError(f"there are no images in {where[0]}: looked for {', '.join(IMAGE_SUFFIXES)}")
    without_labels, without_image = (
        sorted(these.keys() - those.keys())
        for these, those in ((images_by_name, labels_by_name), (labels_by_name, images_by_name))
    )
    problems = [f"{counted(without_labels, 'image')} in {where[0]} without labels"] if without_labels else []
    problems += [f"{counted(without_image, 'label file')} in {where[1]} without an image"] if without_image else []
    if problems:
        raise ExperimentError(
            f"each image must have labels of the same name, found {' and '.join(problems)}"
            f"{_lossy_labels(where[1], without_labels)}"
        )
    return [ImagePair(name, images_by_name[name], labels_by_name[name]) for name in sorted(images_by_name)]


def counted(names: Collection[str], noun: str, shown: int = 5) -> str:
    """Say how many there are of something, with the first few names: "2 images (a, b)", "no images"."""
    if not names:
        return f"no {noun}s"
    return f"{len(names)} {noun}{'' if len(names) == 1 else 's'} ({listed([*names], shown)})"


def listed(items: Sequence[object], shown: int, separator: str = ", ") -> str:
    """List the first few items and say how many more there are: "a, b, and 3 more"."""
    more = [f"and {len(items) - shown} more"] if len(items) > shown else []
    return separator.join([*map(str, items[:shown]), *more])


def _lossy_labels(folder: Path, names: Collection[str]) -> str:
    """Explain why label files of these names in a lossy format were not read, if there are any."""
    files = [path.name for path in files_of(folder, LOSSY_SUFFIXES) if path.stem in names]
    if not files:
        return ""
    return (
        f"; JPEG and WebP files are not read as labels, because compression changes their numbers, found "
        f"{counted(files, 'file')}: labels must be {', '.join(LABEL_SUFFIXES)}"
    )


def _by_name(files: Iterable[Path], name_of: Callable[[Path], str], folder: Path) -> dict[str, Path]:
    files = list(files)
    repeated = sorted(name for name, times in Counter(map(name_of, files)).items() if times > 1)
    if repeated:
        raise ExperimentError(
            f"names must be unique within {folder}, found several files for {counted(repeated, 'name')}"
        )
    return {name_of(path): path for path in files}
