"""The extent of maps: padding an image to whole cells, resizing, and cropping maps back to the image."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def pad_to_multiple(x: Tensor, multiple: int, mode: str = "replicate") -> Tensor:
    """Pad (B, C, H, W) at the bottom and right to multiples of `multiple`.

    Args:
        x: the images.
        multiple: in pixels.
        mode: `replicate` (the border is repeated), or `reflect` where the image is large enough for that.
    """
    height, width = x.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    if not (bottom or right):
        return x
    if bottom >= height or right >= width:
        mode = "replicate"
    return F.pad(x, (0, right, 0, bottom), mode=mode)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resizing of (B, C, h, w) to (B, C, *size), with pixel centres aligned."""
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def crop_output(output: Tensor | dict | list, covered: Sequence[int], wanted: Sequence[int]) -> Tensor | dict | list:
    """Crop every map that a decoder returns to the extent of the image (see `crop_extent`).

    Args:
        output: a map (B, C, h, w), or queries as `MultiScaleMaskedTransformerDecoder` returns them.
        covered: (height, width) of the padded image, in pixels.
        wanted: (height, width) of the image.
    """
    if isinstance(output, Tensor):
        return crop_extent(output, covered, wanted)
    if isinstance(output, list):
        return [crop_output(entry, covered, wanted) for entry in output]
    return {
        name: entry if name == "pred_logits" else crop_output(entry, covered, wanted) for name, entry in output.items()
    }


def crop_extent(x: Tensor, covered: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """Resample a map of a padded image so that it covers the image alone, with cells of about the same size.

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
    # half precision is too coarse for sampling locations
    sampled = F.grid_sample(x.to(grid.dtype), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled.to(x.dtype)
