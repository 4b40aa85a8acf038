"""Class probabilities of whole images or of overlapping tiles, also averaged over mirrored and resized views."""

from collections.abc import Iterator, Sequence
from itertools import product

import torch
from torch import Tensor, nn

from dinov3.eval.segmentation.m2f_targets import queries_to_logits
from dinov3.eval.segmentation.models.utils.extent import resize

INFERENCE_MODES = ("whole", "slide")
MEMORY_SHARE = 0.5  # of the free memory of a GPU that the averages may take
MAPS_AT_ONCE = 4  # of all classes: sum of tiles, its logarithm, resized, and sum of views


@torch.inference_mode()
def make_inference(
    x: Tensor | Sequence[Tensor],
    segmentation_model: nn.Module,
    inference_mode: str = "whole",
    *,
    rescale_to: Sequence[int] | None = None,
    crop_size: int | Sequence[int] | None = None,
    stride: int | Sequence[int] | None = None,
    apply_horizontal_flip: bool = False,
    tile_batch_size: int = 1,
) -> Tensor:
    """Segment images.

    The logits of a tile, in `whole` mode of the image, are resized to its own size; the probabilities of overlapping
    tiles are averaged, and so are those of all views. What is averaged is float32, on the images' device if its free
    memory allows, otherwise on the CPU.

    Args:
        x: normalised images (B, 3, H, W), or views of them in several sizes (multi-scale test-time augmentation).
        segmentation_model: its `predict(images, rescale_to)` returns logits (B, C, H, W), or `pred_masks` (B, Q, H, W)
            and `pred_logits` (B, Q, C + 1), such as `FeatureDecoder`.
        inference_mode: `whole` or `slide`.
        rescale_to: (height, width) of the result; by default that of the (first) images.
        crop_size: `slide`: height and width of the tiles; smaller images are one tile.
        stride: `slide`: steps between tiles; by default two thirds of `crop_size`.
        apply_horizontal_flip: whether the mirrored images are views too.
        tile_batch_size: `slide`: tiles of each image that the model sees at once.

    Returns:
        Probabilities of the classes, (B, C, *rescale_to), float32.

    Raises:
        ValueError: an unknown mode, tiles without a size, or a stride that leaves gaps between them.
    """
    if inference_mode not in INFERENCE_MODES:
        raise ValueError(f"the mode of inference must be one of {', '.join(INFERENCE_MODES)}, found {inference_mode!r}")
    tiling = _tiling(crop_size, stride) if inference_mode == "slide" else None
    views = [x] if isinstance(x, Tensor) else list(x)
    size = tuple(rescale_to or views[0].shape[-2:])
    total, count = None, 0
    for view, mirrored in product(views, (False, True) if apply_horizontal_flip else (False,)):
        image = view.flip(-1) if mirrored else view
        tile, step = tiling or (image.shape[-2:], image.shape[-2:])
        mean = _mean_of_tiles(segmentation_model, image, tile, step, tile_batch_size, size)
        mean = resize_probabilities(mean.flip(-1) if mirrored else mean, size)
        total = mean if total is None else total.add_(mean.to(total.device))
        count += 1
    return total.div_(count)


def resize_probabilities(probabilities: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (B, C, H, W) as logits, so that edges stay sharp."""
    if tuple(probabilities.shape[-2:]) == tuple(size):
        return probabilities
    smallest = torch.finfo(probabilities.dtype).tiny
    return resize(probabilities.clamp(min=smallest).log_(), size).softmax(1)


def accumulation_device(device: torch.device, num_bytes: int) -> torch.device:
    """Where to keep averages: `device`, or the CPU if they would take too much of a GPU's free memory."""
    if device.type != "cuda":
        return device
    # what torch's allocator holds without a use is free too
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + unused
    return device if num_bytes <= MEMORY_SHARE * free else torch.device("cpu")


def tile_corners(length: int, tile: int, step: int) -> Iterator[int]:
    """First pixels of tiles that cover `length` pixels; the last tile ends where the image does."""
    yield from range(0, max(0, length - tile), step)
    yield max(0, length - tile)


def _mean_of_tiles(
    model: nn.Module,
    x: Tensor,
    tile: Sequence[int],
    step: Sequence[int],
    tile_batch_size: int,
    rescale_to: Sequence[int],
) -> Tensor:
    """Probabilities (B, C, H, W), averaged where tiles overlap."""
    batch, _, height, width = x.shape
    corners = list(product(tile_corners(height, tile[0], step[0]), tile_corners(width, tile[1], step[1])))
    windows = [(..., slice(top, top + tile[0]), slice(left, left + tile[1])) for top, left in corners]
    total = coverage = None
    for first in range(0, len(windows), tile_batch_size):
        chosen = windows[first : first + tile_batch_size]
        found = _probabilities(model, torch.cat([x[window] for window in chosen]))
        if total is None:
            values = batch * found.shape[1] * max(height * width, rescale_to[0] * rescale_to[1])
            device = accumulation_device(x.device, values * found.element_size() * MAPS_AT_ONCE)
            total = found.new_zeros((batch, found.shape[1], height, width), device=device)
            coverage = found.new_zeros((height, width), device=device)
        for window, probabilities in zip(chosen, found.split(batch), strict=True):
            total[window] += probabilities.to(total.device)
            coverage[window] += 1
    return total.div_(coverage)


def _probabilities(model: nn.Module, images: Tensor) -> Tensor:
    """Probabilities of the classes at the images' size, float32."""
    output = model.predict(images, rescale_to=tuple(images.shape[-2:]))
    if not isinstance(output, Tensor):
        output = queries_to_logits(output["pred_masks"], output["pred_logits"])
    return output.float().softmax(1)


def _tiling(
    crop_size: int | Sequence[int] | None, stride: int | Sequence[int] | None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) of the tiles, and of the steps between them."""
    if crop_size is None:
        raise ValueError("the mode slide needs crop_size, the height and width of the tiles")
    crop = _pair(crop_size)
    steps = (max(1, 2 * crop[0] // 3), max(1, 2 * crop[1] // 3)) if stride is None else _pair(stride)
    if any(not 1 <= step <= side for step, side in zip(steps, crop, strict=True)):
        raise ValueError(f"stride must be from 1 to crop_size ({crop_size}), found {stride}")
    return crop, steps


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width
