"""Cityscapes: Cordts et al., 2016, https://arxiv.org/abs/1604.01685.

Images are `leftImg8bit/<split>/<city>/<name>_leftImg8bit.png`. Their labels are
`gtFine/<split>/<city>/<name>_gtFine_labelTrainIds.png` (classes 0 to 18, 255 ignored), which Cityscapes' own scripts
make; where there are none, `…_labelIds.png` (classes 0 to 33). Data sets with the same names but other images, such as
`.jpg`, are read too.
"""

from pathlib import Path

from dinov3.data.layouts.request import Part
from dinov3.data.pairs import IMAGE_SUFFIXES, LABEL_SUFFIXES, ImagePair, files_of, pair_up
from dinov3.errors import ExperimentError

FOLDERS = "leftImg8bit/{train,val}/<city> and gtFine/{train,val}/<city>"
IMAGE_ENDING = "_leftImg8bit"
LABEL_ENDINGS = ("_gtFine_labelTrainIds", "_gtFine_labelIds")  # the first of which there are files is taken


def is_at(root: Path) -> bool:
    """Whether this layout is below a folder."""
    return (root / "leftImg8bit").is_dir() and (root / "gtFine").is_dir()


def find(root: Path, part: Part) -> list[ImagePair]:
    """Find the pairs of a part; their names are `<city>/<name>`.

    Raises:
        ExperimentError: a folder is missing, or the files do not fit together.
    """
    images, labels = (root / kind / part.split.lower() for kind in ("leftImg8bit", "gtFine"))
    image_files = files_of(images, IMAGE_SUFFIXES, f"*/*{IMAGE_ENDING}.*")
    for ending in LABEL_ENDINGS:
        label_files = files_of(labels, LABEL_SUFFIXES, f"*/*{ending}.*")
        if label_files:
            return pair_up(image_files, label_files, (images, labels), _name)
    raise ExperimentError(f"there are no labels in {labels}: looked for <city>/*{{{','.join(LABEL_ENDINGS)}}}.png")


def _name(path: Path) -> str:
    ending = next(ending for ending in (IMAGE_ENDING, *LABEL_ENDINGS) if path.stem.endswith(ending))
    return f"{path.parent.name}/{path.stem.removesuffix(ending)}"
