"""ADE20K as the scene parsing challenge distributes it: Zhou et al., 2017, https://arxiv.org/abs/1608.05442."""

from pathlib import Path

from dinov3.data.layouts.request import Part
from dinov3.data.pairs import IMAGE_SUFFIXES, LABEL_SUFFIXES, ImagePair, files_of, pair_up

FOLDERS = "[ADEChallengeData2016/]images/{training,validation} and annotations/{training,validation}"
SUBFOLDERS = {"TRAIN": "training", "VAL": "validation"}


def is_at(root: Path) -> bool:
    """Whether this layout is below a folder, or below its subfolder `ADEChallengeData2016`."""
    return (_base(root) / "images").is_dir() and (_base(root) / "annotations").is_dir()


def find(root: Path, part: Part) -> list[ImagePair]:
    """Find the pairs of a part.

    Raises:
        ExperimentError: a folder is missing, or the files do not fit together.
    """
    images, labels = (_base(root) / kind / SUBFOLDERS[part.split] for kind in ("images", "annotations"))
    return pair_up(files_of(images, IMAGE_SUFFIXES), files_of(labels, LABEL_SUFFIXES), (images, labels))


def _base(root: Path) -> Path:
    inner = root / "ADEChallengeData2016"
    return inner if inner.is_dir() else root
