"""Bilinear sampling of many maps at the same points."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

MAPS_AT_ONCE = 8  # as many as fit into the cache's sets while they are transposed


class PointSampler:
    """Samples maps at some points, bilinearly, with zeros outside: the numbers of `torch.nn.functional.grid_sample`.

    That function gathers four values per point and map. Here the maps are transposed, so that the values of all maps at
    a cell are a row; a point is the weighted sum of four rows.

    Args:
        grid: (x, y), -1 to 1 inside of the maps, (P, 2).
        size: (h, w) of the maps.
    """

    def __init__(self, grid: Tensor, size: Sequence[int]) -> None:
        extent = torch.tensor([size[1], size[0]], device=grid.device)
        place = ((grid + 1) * extent - 1) / 2  # in cells, from the centre of the first one
        offsets = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]], device=grid.device)
        cells = place.floor().unsqueeze(1) + offsets  # (P, 4, 2)
        nearness = (1 - (place.unsqueeze(1) - cells).abs()).prod(-1)
        inside = ((cells >= 0) & (cells < extent)).all(-1)
        self.weights = nearness * inside
        columns, rows = cells.clamp(min=torch.zeros_like(extent), max=extent - 1).long().unbind(-1)
        self.cells = rows * size[1] + columns
        self.transposed = grid.new_empty(0, 0)
        self.columns: tuple[Tensor, ...] = ()

    def __call__(self, maps: Tensor) -> Tensor:
        """Sample maps (Q, h, w); return (P, Q)."""
        if self.transposed.shape[1] != len(maps):  # kept: new memory costs more time than the copy
            self.transposed = maps.new_empty(maps[0].numel(), len(maps))
            self.columns = self.transposed.t().split(MAPS_AT_ONCE)
        for some, columns in zip(maps.flatten(1).split(MAPS_AT_ONCE), self.columns, strict=True):
            columns.copy_(some)
        return F.embedding_bag(self.cells, self.transposed, mode="sum", per_sample_weights=self.weights)
