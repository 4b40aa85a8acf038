"""Which part of which data set is asked for."""

from typing import NamedTuple

SPLITS = ("TRAIN", "VAL")


class Part(NamedTuple):
    """The training or the validation part of a data set.

    Attributes:
        split: one of `SPLITS`.
        val_share: share of the images that a drawn split keeps for validation.
        seed: of a drawn split.
    """

    split: str
    val_share: float
    seed: int
