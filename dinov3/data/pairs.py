"""Files of images and labels, and which belong together."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from dinov3.errors import ExperimentError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")  # without the lossy ones, which change labels


class ImagePair(NamedTuple):
    """An image with its labels.

    Attributes:
        name: what messages and figures call it.
        image: file of the image.
        labels: file of its labels.
    """

    name: str
    image: Path
    labels: Path


def stem_of(path: Path) -> str:
    """Return the name of a file without its suffix."""
    return path.stem


def files_of(folder: Path, suffixes: Collection[str], pattern: str = "*") -> list[Path]:
    """List the files of a folder with one of some suffixes, in any case, without hidden ones.

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
    """Pair images with the labels of the same name, in the order of the names.

    Args:
        images: files of images.
        labels: files of labels.
        where: the folders of both, for messages.
        name_of: the name of an image or of labels.

    Raises:
        ExperimentError: there is no image, a name is there twice, or an image or labels are without their counterpart.
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
        raise ExperimentError(f"images and labels must be pairs of one name, found {' and '.join(problems)}")
    return [ImagePair(name, images_by_name[name], labels_by_name[name]) for name in sorted(images_by_name)]


def counted(names: Collection[str], noun: str, shown: int = 5) -> str:
    """Say how many there are of something, with the first few names: "2 images (a, b)"."""
    first = [*names][:shown]
    more = [f"and {len(names) - shown} more"] if len(names) > shown else []
    return f"{len(names)} {noun}{'' if len(names) == 1 else 's'} ({', '.join([*first, *more])})"


def _by_name(files: Iterable[Path], name_of: Callable[[Path], str], folder: Path) -> dict[str, Path]:
    files = list(files)
    twice = sorted(name for name, times in Counter(map(name_of, files)).items() if times > 1)
    if twice:
        raise ExperimentError(f"names must be unique within {folder}, found several files for {counted(twice, 'name')}")
    return {name_of(path): path for path in files}
