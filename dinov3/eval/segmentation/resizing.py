"""Random and fixed changes of size of images with their labels: resizing, cropping, padding."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F


class RandomResize(v2.Transform):
    """Resize so that the shorter side is a length times a random factor.

    Args:
        img_size: the length; None for the image's.
        ratio_range: from and to, of the factor.
    """

    def __init__(self, img_size: int | None, ratio_range: Sequence[float]) -> None:
        super().__init__()
        self.img_size, self.ratio_range = img_size, ratio_range

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw a size."""
        ratio = float(torch.empty(()).uniform_(*self.ratio_range))
        return {"size": shorter_side(flat_inputs[0], self.img_size, ratio)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize: images smoothly, labels to the nearest."""
        return F.resize(inpt, params["size"], antialias=True)


class ResizedViews(nn.Module):
    """Replace an image by a list of it in several sizes.

    Args:
        img_size: length of the shorter side; None for the image's.
        ratios: factors on it.
    """

    def __init__(self, img_size: int | None, ratios: Sequence[float]) -> None:
        super().__init__()
        self.img_size, self.ratios = img_size, tuple(ratios)

    def forward(self, image: tv_tensors.Image, labels: tv_tensors.Mask) -> tuple[list[tv_tensors.Image], Tensor]:
        """Resize the image; the labels keep their size."""
        sizes = [shorter_side(image, self.img_size, ratio) for ratio in self.ratios]
        return [F.resize(image, size, antialias=True) for size in sizes], labels


def shorter_side(image: Tensor, img_size: int | None, ratio: float) -> list[int]:
    """Length of the shorter side of an image after resizing, as torchvision takes it."""
    return [max(1, round((img_size or min(image.shape[-2:])) * ratio))]


class RandomCropWithClassLimit(v2.Transform):
    """A random crop in which one class has at most a share of the pixels that are not ignored.

    Args:
        crop_size: (height, width); images that are smaller keep that side.
        ignore_index: label of pixels that do not count.
        max_share: the share.
        attempts: number of places to try; the last one is taken if none fits.
    """

    def __init__(
        self,
        crop_size: Sequence[int],
        ignore_index: int,
        max_share: float = 0.75,
        attempts: int = 10,
    ) -> None:
        super().__init__()
        self.crop_size, self.max_share = tuple(crop_size), max_share
        self.attempts, self.ignore_index = attempts, ignore_index

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw a place."""
        labels = next(entry for entry in flat_inputs if isinstance(entry, tv_tensors.Mask))
        height, width = (min(side, crop) for side, crop in zip(labels.shape[-2:], self.crop_size, strict=True))
        for _ in range(self.attempts):
            top = int(torch.randint(labels.shape[-2] - height + 1, ()))
            left = int(torch.randint(labels.shape[-1] - width + 1, ()))
            if self._is_mixed(labels[..., top : top + height, left : left + width]):
                break
        return {"top": top, "left": left, "height": height, "width": width}

    def _is_mixed(self, labels: Tensor) -> bool:
        counts = labels.flatten().bincount(minlength=self.ignore_index + 1)
        counts[self.ignore_index] = 0
        return 0 < int(counts.max()) <= self.max_share * int(counts.sum())

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Crop."""
        return F.crop(inpt, **params)


class PadToSize(v2.Transform):
    """Pad at the bottom and right: normalised images with 0, the mean colour, labels with the ignored one.

    Args:
        size: smallest (height, width).
        ignore_index: the ignored label.
    """

    def __init__(self, size: Sequence[int], ignore_index: int) -> None:
        super().__init__()
        self.size, self.ignore_index = tuple(size), ignore_index

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Pad what is too small."""
        bottom, right = (max(0, side - found) for side, found in zip(self.size, inpt.shape[-2:], strict=True))
        fill = self.ignore_index if isinstance(inpt, tv_tensors.Mask) else 0
        return F.pad(inpt, [0, 0, right, bottom], fill=fill) if bottom or right else inpt
