"""Plain folders: `images/` and `labels/` with files of the same names.

Images have one of `IMAGE_SUFFIXES`. Labels may have another suffix than their image, one of `LABEL_SUFFIXES`: not those
of JPEG and WebP, whose compression changes the numbers.
"""

from collections.abc import Iterable
from pathlib import Path

import torch

from dinov3.data.layouts.request import Part, subfolders
from dinov3.data.pairs import IMAGE_SUFFIXES, LABEL_SUFFIXES, ImagePair, counted, files_of, pair_up
from dinov3.data.sampling import SPLIT, derived_seed
from dinov3.errors import ExperimentError

FOLDERS = "images/{train,val} and labels/{train,val}, or images/ and labels/ with or without train.txt and val.txt"
SPLIT_FOLDERS = {"TRAIN": ("train", "training"), "VAL": ("val", "validation")}
NAMES_OF_SPLITS = "train (or training) and val (or validation)"


def is_at(root: Path) -> bool:
    """Whether this layout is below a folder."""
    return all(_named(root, (kind,)) for kind in ("images", "labels"))


def find(root: Path, part: Part) -> list[ImagePair]:
    """Find the pairs of a part.

    The parts are subfolders (`images/train`, `labels/train`), or the lines of `train.txt` and `val.txt`, each the name
    of an image with or without its suffix, or drawn. Names of folders may be in upper or lower case.

    Raises:
        ExperimentError: a folder or a file is missing, or images and labels do not fit together.
    """
    images, labels = (_subfolder(root, (kind,), "images and labels") for kind in ("images", "labels"))
    if any(_named(images, names) for names in SPLIT_FOLDERS.values()):
        names = SPLIT_FOLDERS[part.split]
        return _pairs_in(*(_subfolder(folder, names, NAMES_OF_SPLITS) for folder in (images, labels)))
    pairs = _pairs_in(images, labels)
    lists = {split: root / f"{split.lower()}.txt" for split in SPLIT_FOLDERS}
    there, missing = ([path for path in lists.values() if path.is_file() == present] for present in (True, False))
    if there and missing:
        raise ExperimentError(f"train.txt and val.txt are both needed, found {there[0]} but no {missing[0].name}")
    return _listed(pairs, lists)[part.split] if there else _drawn(pairs, part)


def _named(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """Find the subfolders with one of some names, in upper or lower case."""
    return sorted(path for path in folder.iterdir() if path.name.lower() in names and path.is_dir())


def _subfolder(folder: Path, names: tuple[str, ...], needed: str) -> Path:
    """Return the one subfolder with one of some names; `needed` are all that the folder must have, for messages."""
    found = _named(folder, names)
    if len(found) > 1:
        raise ExperimentError(f"only one subfolder of {folder} may be named {' or '.join(names)}, found {len(found)}")
    if not found:
        raise ExperimentError(
            f"{folder} must have the subfolders {needed}, found {counted(subfolders(folder), 'subfolder')}"
        )
    return found[0]


def _pairs_in(images: Path, labels: Path) -> list[ImagePair]:
    for folder in (images, labels):
        if not files_of(folder, IMAGE_SUFFIXES) and subfolders(folder):
            raise ExperimentError(
                "images and labels must lie directly in images/ and labels/, or in their subfolders "
                f"{NAMES_OF_SPLITS}, found no image files but {counted(subfolders(folder), 'subfolder')} in {folder}"
            )
    return pair_up(files_of(images, IMAGE_SUFFIXES), files_of(labels, LABEL_SUFFIXES), (images, labels))


def _listed(pairs: list[ImagePair], lists: dict[str, Path]) -> dict[str, list[ImagePair]]:
    listed = {split: _names_in(path, pairs) for split, path in lists.items()}
    in_both = sorted(set.intersection(*(set(names) for names in listed.values())))
    if in_both:
        raise ExperimentError(f"{lists['TRAIN']} and {lists['VAL']} must not share images, found {_names(in_both)}")
    by_name = {pair.name: pair for pair in pairs}
    return {split: [by_name[name] for name in sorted(names)] for split, names in listed.items()}


def _names_in(path: Path, pairs: Iterable[ImagePair]) -> set[str]:
    """Read the names of images, with or without suffix, from a list."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ExperimentError(f"the list of images {path} cannot be read: {error}") from error
    names = {spelling: pair.name for pair in pairs for spelling in (pair.image.name, pair.name)}
    unknown = [line for line in lines if line and line not in names]
    if unknown:
        are = "is" if len(unknown) == 1 else "are"
        raise ExperimentError(f"{path} must list images, one per line, found {_names(unknown)} that {are} not there")
    found = {names[line] for line in lines if line}
    if not found:
        raise ExperimentError(f"{path} lists no image")
    return found


def _names(names: list[str]) -> str:
    return counted(names, "name")


def _drawn(pairs: list[ImagePair], part: Part) -> list[ImagePair]:
    if len(pairs) < 2:
        raise ExperimentError(
            f"a training and a validation image are needed, found only {pairs[0].image}; both can be set by "
            "datasets.train and datasets.val"
        )
    generator = torch.Generator().manual_seed(derived_seed(part.seed, SPLIT))
    order = torch.randperm(len(pairs), generator=generator).tolist()
    num_val = min(max(1, round(part.val_share * len(pairs))), len(pairs) - 1)
    chosen = order[:num_val] if part.split == "VAL" else order[num_val:]
    return [pairs[index] for index in sorted(chosen)]
