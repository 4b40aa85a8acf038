"""Plain folders: `images/` and `labels/` with files of the same names, whatever the suffix."""

from collections.abc import Iterable
from pathlib import Path

import torch

from dinov3.data.layouts.request import SPLITS, Part
from dinov3.data.pairs import IMAGE_SUFFIXES, LABEL_SUFFIXES, ImagePair, counted, files_of, pair_up
from dinov3.data.sampling import SPLIT, derived_seed
from dinov3.errors import ExperimentError

FOLDERS = "images/{train,val} and labels/{train,val}, or images/ and labels/ with or without train.txt and val.txt"


def is_at(root: Path) -> bool:
    """Whether this layout is below a folder."""
    return (root / "images").is_dir() and (root / "labels").is_dir()


def find(root: Path, part: Part) -> list[ImagePair]:
    """Find the pairs of a part.

    The parts are folders (`images/train`, `labels/train`), or the lines of `train.txt` and `val.txt`, each the name of
    an image with or without its suffix, or drawn.

    Raises:
        ExperimentError: a folder or a file is missing, or they do not fit together.
    """
    if any((root / "images" / split.lower()).is_dir() for split in SPLITS):
        return _pairs_in(root / "images" / part.split.lower(), root / "labels" / part.split.lower())
    pairs = _pairs_in(root / "images", root / "labels")
    lists = {split: root / f"{split.lower()}.txt" for split in SPLITS}
    if any(path.is_file() for path in lists.values()):
        return _listed(pairs, lists)[part.split]
    return _drawn(pairs, part)


def _pairs_in(images: Path, labels: Path) -> list[ImagePair]:
    return pair_up(files_of(images, IMAGE_SUFFIXES), files_of(labels, LABEL_SUFFIXES), (images, labels))


def _listed(pairs: list[ImagePair], lists: dict[str, Path]) -> dict[str, list[ImagePair]]:
    listed = {split: _names_in(path, pairs) for split, path in lists.items()}
    in_both = sorted(set.intersection(*(set(names) for names in listed.values())))
    if in_both:
        raise ExperimentError(f"{lists['TRAIN']} and {lists['VAL']} must not share images, found {_names(in_both)}")
    by_name = {pair.name: pair for pair in pairs}
    return {split: [by_name[name] for name in sorted(names)] for split, names in listed.items()}


def _names_in(path: Path, pairs: Iterable[ImagePair]) -> set[str]:
    """Read the names of images, which stand with or without the suffix."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ExperimentError(f"the list of images {path} cannot be read: {error}") from error
    names = {spelling: pair.name for pair in pairs for spelling in (pair.image.name, pair.name)}
    unknown = [line for line in lines if line and line not in names]
    if unknown:
        raise ExperimentError(f"{path} must list images, one per line, found {_names(unknown)} that are not there")
    found = {names[line] for line in lines if line}
    if not found:
        raise ExperimentError(f"{path} lists no image")
    return found


def _names(names: list[str]) -> str:
    return counted(names, "name")


def _drawn(pairs: list[ImagePair], part: Part) -> list[ImagePair]:
    if len(pairs) < 2:
        raise ExperimentError(
            f"a training and a validation image are needed, found only {pairs[0].image}; both can be named in "
            "datasets.train and datasets.val"
        )
    generator = torch.Generator().manual_seed(derived_seed(part.seed, SPLIT))
    order = torch.randperm(len(pairs), generator=generator).tolist()
    num_val = min(max(1, round(part.val_share * len(pairs))), len(pairs) - 1)
    chosen = order[:num_val] if part.split == "VAL" else order[num_val:]
    return [pairs[index] for index in sorted(chosen)]
