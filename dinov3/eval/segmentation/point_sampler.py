"""Bilinear sampling of feature maps at points."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def sample(maps: Tensor, grid: Tensor, padding_mode: str = "zeros") -> Tensor:
    """Sample maps bilinearly.

    Args:
        maps: (B, C, h, w).
        grid: (x, y), -1 to 1 inside the map, (B, P, 2).
        padding_mode: as in `torch.nn.functional.grid_sample`.

    Returns:
        (B, C, P).
    """
    return F.grid_sample(maps, grid.unsqueeze(2), padding_mode=padding_mode, align_corners=False).squeeze(-1)


class PointSampler:
    """Samples many maps of an image at the same points: the values of `sample`, without gradients.

    `grid_sample` gathers four values per point and map. Here the maps are channels-last, so that a point is the
    weighted sum of four rows of memory: with `grid_sample` the whole loss takes 1.3 to 1.6 times as long on a CPU for
    three classes, and 1.1 to 1.2 times for 20.

    Args:
        grid: (x, y), -1 to 1 inside the maps, (P, 2).
        size: (h, w) of the maps.
    """

    def __init__(self, grid: Tensor, size: Sequence[int]) -> None:
        height, width = size
        extent = torch.tensor([width, height], device=grid.device)
        location = ((grid + 1) * extent - 1) / 2  # in pixels, from the centre of the first one
        corners = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]], device=grid.device)
        pixels = location.floor().unsqueeze(1) + corners  # (P, 4, 2)
        self.weights = (1 - (location.unsqueeze(1) - pixels).abs()).prod(-1)
        inside = ((pixels >= 0) & (pixels < extent)).all(-1)
        columns, rows = pixels.long().unbind(-1)
        self.indices = (rows * width + columns).where(inside, height * width)  # the row after the last pixel is 0
        self.rows = grid.new_empty(0, 0)

    def __call__(self, maps: Tensor) -> Tensor:
        """Sample maps (C, h, w); return (P, C)."""
        if self.rows.shape[1] != len(maps):  # kept otherwise: new memory costs more time than the copy
            self.rows = self.weights.new_zeros(maps[0].numel() + 1, len(maps))
        self.rows[:-1].copy_(maps.flatten(1).t())
        return F.embedding_bag(self.indices, self.rows, mode="sum", per_sample_weights=self.weights)
