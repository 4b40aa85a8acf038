"""Augmentation and normalisation of images with their labels, and the batches of a data loader.

Every random number comes from torch's generator, so that its state is all that a resumed training needs.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from dinov3.eval.segmentation.m2f_targets import Target, label_target
from dinov3.eval.segmentation.resizing import PadToSize, RandomCropWithClassLimit, RandomResize, ResizedViews

IGNORE_INDEX = 255
IMAGENET_MEAN = (123.675, 116.28, 103.53)  # of pixels from 0 to 255
IMAGENET_STD = (58.395, 57.12, 57.375)


def make_segmentation_train_transforms(
    img_size: int | None = None,
    random_img_size_ratio_range: Sequence[float] | None = None,
    crop_size: Sequence[int] | None = None,
    flip_prob: float = 0.0,
    reduce_zero_label: bool = False,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    *,
    decoder_type: str = "linear",
    photometric_distortion: bool = True,
    ignore_index: int = IGNORE_INDEX,
) -> v2.Compose:
    """Compose the augmentation of training.

    Args:
        img_size: length of the shorter side after resizing; None keeps the image's.
        random_img_size_ratio_range: from and to: a random factor on it.
        crop_size: (height, width) of a random crop, in which one class has at most 75% of the pixels where one of ten
            tries finds such a place; smaller images are padded with the mean colour and the ignored label.
        flip_prob: probability of mirroring left and right.
        reduce_zero_label: see `ReduceZeroLabel`.
        mean: of the colours, for pixels from 0 to 255.
        std: of the colours.
        decoder_type: `linear`, or `m2f` for the targets of Mask2Former.
        photometric_distortion: whether to change the colours at random.
        ignore_index: label of pixels that have no effect.

    Returns:
        A function of an image and its labels (see `ToTensors`). It returns the image, (3, H, W), float32, and the
        labels, (H, W), int64, or for `m2f` a dictionary (see `SemanticToM2FTargets`).

    Raises:
        ValueError: an unknown type of decoder, or a range that is none.
    """
    if decoder_type not in ("linear", "m2f"):
        raise ValueError(f"decoder_type must be one of linear, m2f, found {decoder_type!r}")
    low, high = random_img_size_ratio_range or (1.0, 1.0)
    if not 0 < low <= high:
        raise ValueError(
            f"random_img_size_ratio_range must be two positive numbers, the smaller first, found {low}, {high}"
        )
    steps: list[nn.Module] = [ToTensors()]
    if reduce_zero_label:
        steps.append(ReduceZeroLabel(ignore_index))
    if img_size is not None or low != 1 or high != 1:
        steps.append(RandomResize(img_size, (low, high)))
    if crop_size is not None:
        steps.append(RandomCropWithClassLimit(crop_size, ignore_index))
    steps.append(v2.RandomHorizontalFlip(flip_prob))
    if photometric_distortion:
        steps.append(make_photometric_distortion())
    steps.append(make_normalisation(mean, std))
    if crop_size is not None:
        steps.append(PadToSize(crop_size, ignore_index))
    return v2.Compose([*steps, SemanticToM2FTargets(ignore_index) if decoder_type == "m2f" else ToLabels()])


def make_segmentation_eval_transforms(
    img_size: int | None = None,
    tta_ratios: Sequence[float] = (1.0,),
    reduce_zero_label: bool = False,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    *,
    ignore_index: int = IGNORE_INDEX,
) -> v2.Compose:
    """Compose the preparation of images for evaluation.

    Args:
        img_size: length of the shorter side after resizing; None keeps the image's.
        tta_ratios: factors on it, one for each view of multi-scale test-time augmentation.
        reduce_zero_label: see `ReduceZeroLabel`.
        mean: of the colours, for pixels from 0 to 255.
        std: of the colours.
        ignore_index: label of pixels that do not count.

    Returns:
        A function of an image and its labels (see `ToTensors`). It returns the views, (3, h, w), float32, in a list,
        and the labels in their own size, (H, W), int64.
    """
    steps = [ToTensors(), *([ReduceZeroLabel(ignore_index)] if reduce_zero_label else [])]
    return v2.Compose([*steps, ResizedViews(img_size, tta_ratios), make_normalisation(mean, std), ToLabels()])


def make_photometric_distortion() -> v2.Compose:
    """Random brightness, contrast, saturation and hue, each for half of the images, the contrast first or last.

    After Liu et al., "SSD", 2016, https://arxiv.org/abs/1512.02325.
    """
    brightness, contrast, saturation, hue = (
        v2.RandomApply([v2.ColorJitter(**change)], p=0.5)
        for change in ({"brightness": 32 / 255}, {"contrast": 0.5}, {"saturation": 0.5}, {"hue": 18 / 360})
    )
    colour = [saturation, hue]
    order = v2.RandomChoice([v2.Compose([contrast, *colour]), v2.Compose([*colour, contrast])])
    return v2.Compose([brightness, order])


def make_normalisation(mean: Sequence[float], std: Sequence[float]) -> v2.Compose:
    """To float32, normalised by mean and standard deviation of pixels from 0 to 255."""
    to_float = v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)
    return v2.Compose([to_float, v2.Normalize([value / 255 for value in mean], [value / 255 for value in std])])


class ToTensors(nn.Module):
    """Make tensors of an image (RGB) and its labels, which may be images of Pillow, arrays or tensors.

    Arrays are (H, W, 3) and (H, W), tensors (3, H, W) and (H, W). Images are 8-bit, or floats from 0 to 1.
    """

    def forward(self, image: Any, labels: Any) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """Convert both.

        Raises:
            ValueError: they differ in size, or the image is of another kind.
        """
        image = tv_tensors.Image(image) if isinstance(image, Tensor) else F.to_image(image)
        if len(image) != 3 or not (image.dtype == torch.uint8 or image.is_floating_point()):
            kind = f"{len(image)} of {str(image.dtype).removeprefix('torch.')}"
            raise ValueError(f"an image must have 3 channels of uint8 or floats, found {kind}")
        labels = labels if isinstance(labels, Tensor) else torch.from_numpy(np.array(labels))
        if image.shape[-2:] != labels.shape:
            found = " and ".join(" x ".join(str(side) for side in x.shape[-2:]) for x in (image, labels))
            raise ValueError(f"image and labels must have the same height and width, found {found}")
        return image, tv_tensors.Mask(labels if labels.dtype == torch.uint8 else labels.to(torch.int64))


class ReduceZeroLabel(v2.Transform):
    """Of labels in which 0 means "unlabelled": ignore these pixels, and count the classes from 0.

    Args:
        ignore_index: label of pixels that have no effect, before and after.
    """

    def __init__(self, ignore_index: int = IGNORE_INDEX) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Change the labels alone."""
        if not isinstance(inpt, tv_tensors.Mask):
            return inpt
        unlabelled = (inpt == 0) | (inpt == self.ignore_index)
        return tv_tensors.wrap((inpt - 1).masked_fill(unlabelled, self.ignore_index), like=inpt)


class ToLabels(nn.Module):
    """Make a plain tensor of the labels, (H, W), int64."""

    def forward(self, image: Any, labels: Tensor) -> tuple[Any, Tensor]:
        """Convert the labels; the image stays."""
        return image, labels.as_subclass(Tensor).to(torch.int64)


class SemanticToM2FTargets(nn.Module):
    """Make the targets of Mask2Former of the labels.

    Args:
        ignore_index: label of pixels that have no effect.
    """

    def __init__(self, ignore_index: int = IGNORE_INDEX) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, image: Any, labels: Tensor) -> tuple[Any, Target]:
        """Convert the labels as `label_target` does."""
        return image, label_target(labels.as_subclass(Tensor), self.ignore_index)


def collate_segmentation(samples: Sequence[tuple[Any, Any]]) -> tuple[Tensor | list[Tensor], Tensor | list[Target]]:
    """Make a batch of samples of the transforms above.

    Args:
        samples: image and labels, views and labels, or image and target.

    Returns:
        Images (B, 3, H, W), of views a list of such; and labels (B, H, W), of targets, which have different numbers of
        masks, a list of them.
    """
    images, labels = zip(*samples, strict=True)
    views = isinstance(images[0], list)
    batch = [torch.stack(view) for view in zip(*images, strict=True)] if views else torch.stack(images)
    return batch, list(labels) if isinstance(labels[0], dict) else torch.stack(labels)
