"""Sampling of many maps at the same points equals PyTorch's `grid_sample`."""

import pytest
import torch
import torch.nn.functional as F

from dinov3.eval.segmentation.point_sampler import PointSampler

CORNERS = [[-1.0, -1.0], [1.0, 1.0], [-1.0, 1.0], [0.0, 0.0], [1.2, 0.0], [-3.0, -3.0]]  # the last two lie outside


@pytest.mark.parametrize("size", [(1, 1), (7, 12), (16, 5)])
@pytest.mark.parametrize("number", [1, 70])
def test_it_equals_grid_sample(size: tuple[int, int], number: int):
    torch.manual_seed(0)
    grid = torch.cat([torch.tensor(CORNERS), torch.rand(50, 2) * 2.2 - 1.1])
    sampler = PointSampler(grid, size)
    for count in (number, 3, number):  # its memory is kept, and allocated again
        maps = torch.randn(count, *size)
        expected = F.grid_sample(maps[None], grid.view(1, 1, -1, 2), align_corners=False)[0, :, 0].t()
        torch.testing.assert_close(sampler(maps), expected, atol=1e-6, rtol=1e-5)
