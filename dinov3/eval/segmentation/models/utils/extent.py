"""What part of an image a map covers: padding to whole cells, and the way back."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def round_up(size: Sequence[int], multiple: int) -> tuple[int, int]:
    """The least (height, width) of whole multiples that contains `size`."""
    height, width = (-(-side // multiple) * multiple for side in size)
    return height, width


def pad_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """Pad (B, C, h, w) at the bottom and right to (B, C, *size) by repeating the border."""
    bottom, right = size[0] - x.shape[-2], size[1] - x.shape[-1]
    return F.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resizing of (B, C, h, w) to (B, C, *size), with pixel centres aligned."""
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def crop_extent(x: Tensor, covered: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """Sample a map of a padded image anew, so that it covers the image alone, with cells of about the same size.

    Args:
        x: a map (B, C, h, w) of a padded image.
        covered: (height, width) of the padded image, in pixels.
        wanted: (height, width) of the image, which begins at the same corner.

    Returns:
        (B, C, h', w'), h' and w' being those of the image, rounded up to whole cells.
    """
    if tuple(covered) == tuple(wanted):
        return x
    cells = [-(-side * count // whole) for side, count, whole in zip(wanted, x.shape[-2:], covered, strict=True)]
    axes = []
    for count, side, whole in zip(cells, wanted, covered, strict=True):
        centres = (torch.arange(count, device=x.device) + 0.5) / count
        axes.append(2 * centres * side / whole - 1)
    y, columns = torch.meshgrid(*axes, indexing="ij")
    grid = torch.stack([columns, y], dim=-1).expand(len(x), -1, -1, -1)
    # half precision is too coarse for places
    sampled = F.grid_sample(x.to(grid.dtype), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled.to(x.dtype)
