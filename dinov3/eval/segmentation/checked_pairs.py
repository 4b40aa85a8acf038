"""The check of a data set's files by a run on one or several processes."""

from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator

from dinov3.data.checks import check_pairs
from dinov3.data.pairs import ImagePair
from dinov3.eval.segmentation.config import SegmentationConfig

CHECKED_FILES = "checked_files.json"


def checked_pairs(
    pairs: Sequence[ImagePair], title: str, config: SegmentationConfig, accelerator: Accelerator, folder: Path
) -> list[ImagePair]:
    """Check images and labels (see `check_pairs`); files that have not changed since are not read again.

    Args:
        pairs: the files.
        title: what messages call the images, such as "training".
        config: of the run.
        accelerator: of the run.
        folder: of the run; it keeps what was found.

    Raises:
        ExperimentError: see `check_pairs`.
    """
    with accelerator.main_process_first():  # the others then need not read the files
        return check_pairs(
            pairs,
            config.decoder_head.num_classes,
            config.eval.reduce_zero_label,
            config.datasets,
            config.num_workers,
            title,
            folder / CHECKED_FILES,
        )
