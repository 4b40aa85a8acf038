"""The data set of pairs of an image and its labels."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dinov3.data.errors import ImageFileError
from dinov3.data.images import read_image, read_labels
from dinov3.data.pairs import ImagePair
from dinov3.data.sampling import AUGMENTATION, Draw, derived_seed


class SegmentationDataset(Dataset):
    """Images with their labels, read and transformed.

    `dataset[index]` is a pair, for evaluation. `dataset[draw, index]` is one for training, whose augmentation is a
    function of `seed` and `draw`, the number of the draw within the training, in whichever process it is loaded.

    Args:
        pairs: the files.
        transform: a function of an image and its labels.
        seed: of the augmentation.
        max_value: see `read_image`.

    Attributes:
        pairs: the files.
    """

    def __init__(
        self,
        pairs: Sequence[ImagePair],
        transform: Callable[[Tensor, Tensor], tuple[Any, Any]],
        seed: int,
        max_value: float | None = None,
    ) -> None:
        self.pairs, self.transform, self.seed, self.max_value = list(pairs), transform, seed, max_value

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.pairs)

    def __getitem__(self, item: int | Draw) -> tuple[Any, Any]:
        """Return the transformed image and labels.

        Raises:
            ImageFileError: a file can no longer be read.
        """
        if not isinstance(item, tuple):
            return self._sample(item)
        draw, index = item
        with torch.random.fork_rng(devices=[]):
            # not torch.manual_seed, which would seed the GPUs of this process too
            torch.default_generator.manual_seed(derived_seed(self.seed, AUGMENTATION, draw))
            return self._sample(index)

    def _sample(self, index: int) -> tuple[Any, Any]:
        pair = self.pairs[index]
        image, labels = read_image(pair.image, self.max_value), read_labels(pair.labels)
        if image.shape[1:] != labels.shape:  # a file has changed since it was checked
            raise ImageFileError(different_sizes(pair, image, labels))
        return self.transform(image, labels)


def different_sizes(pair: ImagePair, image: Tensor, labels: Tensor) -> str:
    """Return the message for an image and labels of different sizes."""
    (height, width), (labels_height, labels_width) = image.shape[1:], labels.shape
    return (
        f"an image and its labels must have the same height and width, found {height} x {width} in {pair.image} "
        f"and {labels_height} x {labels_width} in {pair.labels}"
    )
