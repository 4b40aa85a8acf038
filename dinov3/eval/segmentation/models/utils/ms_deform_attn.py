"""Multi-scale deformable attention (Zhu et al., "Deformable DETR", 2021, https://arxiv.org/abs/2010.04159, eq. 3).

Every query attends to a few sampling locations around its reference point, on maps of several sizes. Plain PyTorch.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def ms_deform_attn_core_pytorch(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Sum the values at sampling locations, weighted by the attention.

    Args:
        value: the maps, flattened and one after the other, (B, Σ h·w, heads, C).
        spatial_shapes: (h, w) of every map, (levels, 2).
        sampling_locations: (x, y), 0 to 1 inside of the map, (B, queries, heads, levels, points, 2). Bilinear; outside
            of the map the values are 0.
        attention_weights: (B, queries, heads, levels, points).

    Returns:
        (B, queries, heads · C).
    """
    batch, _, heads, channels = value.shape
    queries = sampling_locations.shape[1]
    shapes = [(int(height), int(width)) for height, width in spatial_shapes]
    grids = (2 * sampling_locations - 1).transpose(1, 2).flatten(0, 1)  # (B · heads, queries, levels, points, 2)
    weights = attention_weights.transpose(1, 2).flatten(0, 1).unsqueeze(1)  # (B · heads, 1, queries, levels, points)
    total = value.new_zeros(())
    for level, (flat, shape) in enumerate(zip(value.split([h * w for h, w in shapes], dim=1), shapes, strict=True)):
        maps = flat.permute(0, 2, 3, 1).reshape(batch * heads, channels, *shape)
        sampled = F.grid_sample(maps, grids[:, :, level], mode="bilinear", padding_mode="zeros", align_corners=False)
        total = total + (sampled * weights[:, :, :, level]).sum(-1)
    return total.view(batch, heads * channels, queries).transpose(1, 2)


def pixel_centres(shapes: Sequence[Sequence[int]], like: Tensor) -> Tensor:
    """Centres (x, y) of the pixels of maps, 0 to 1 in each map, row by row and one map after the other.

    Args:
        shapes: (h, w) of every map.
        like: a tensor of the wanted type and device.

    Returns:
        (1, Σ h·w, 1, 2).
    """
    centres = []
    for height, width in shapes:
        rows = (torch.arange(height, dtype=like.dtype, device=like.device) + 0.5) / height
        columns = (torch.arange(width, dtype=like.dtype, device=like.device) + 0.5) / width
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        centres.append(torch.stack([x.flatten(), y.flatten()], dim=-1))
    return torch.cat(centres).view(1, -1, 1, 2)


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention.

    Args:
        d_model: channels of queries, maps and result.
        n_levels: number of maps.
        n_heads: number of attention heads.
        n_points: points per head and map.
        ratio: channels of the values as a share of `d_model`.

    Raises:
        ValueError: the channels of the values are not divisible by the heads.
    """

    def __init__(
        self, d_model: int = 256, n_levels: int = 4, n_heads: int = 8, n_points: int = 4, ratio: float = 1.0
    ) -> None:
        super().__init__()
        value_channels = int(d_model * ratio)
        if value_channels % n_heads:
            raise ValueError(f"{value_channels} channels of the values cannot be shared by {n_heads} attention heads")
        self.n_levels = n_levels
        self.n_heads = n_heads
        self.n_points = n_points
        num_samples = n_heads * n_levels * n_points
        self.sampling_offsets = nn.Linear(d_model, 2 * num_samples)
        self.attention_weights = nn.Linear(d_model, num_samples)
        self.value_proj = nn.Linear(d_model, value_channels)
        self.output_proj = nn.Linear(value_channels, d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as in the paper."""
        # each head starts with a direction of its own, each point one step further out, all with the same weight
        angles = 2 * math.pi / self.n_heads * torch.arange(self.n_heads, dtype=torch.float32)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.n_points + 1, dtype=torch.float32)
        offsets = directions.view(-1, 1, 1, 2) * steps.view(-1, 1)
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.n_levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        input_flatten: Tensor,
        input_spatial_shapes: Tensor | Sequence[Sequence[int]],
        input_level_start_index: Tensor | None = None,
        input_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Cross-attend to feature maps.

        Args:
            query: (B, queries, d_model).
            reference_points: of the queries, (x, y) or boxes (x, y, w, h), 0 to 1,
                (B or 1, queries, levels or 1, 2 or 4).
            input_flatten: the maps, flattened and one after the other, (B, Σ h·w, d_model).
            input_spatial_shapes: (h, w) of every map, (levels, 2).
            input_level_start_index: where each map begins; follows from the shapes, and is not read.
            input_padding_mask: True where a map is padding, (B, Σ h·w).

        Returns:
            (B, queries, d_model).
        """
        value = self.value_proj(input_flatten)
        if input_padding_mask is not None:
            value = value.masked_fill(input_padding_mask.unsqueeze(-1), 0.0)
        samples = (self.n_heads, self.n_levels, self.n_points)
        offsets = self.sampling_offsets(query).unflatten(-1, (*samples, 2))
        weights = self.attention_weights(query).unflatten(-1, (self.n_heads, -1)).softmax(-1)
        attended = ms_deform_attn_core_pytorch(
            value.unflatten(-1, (self.n_heads, -1)),
            input_spatial_shapes,
            self._locate(reference_points, offsets, input_spatial_shapes),
            weights.unflatten(-1, samples[1:]),
        )
        return self.output_proj(attended)

    def _locate(self, reference: Tensor, offsets: Tensor, shapes: Tensor | Sequence[Sequence[int]]) -> Tensor:
        centres = reference[:, :, None, :, None, :2]
        if reference.shape[-1] == 4:
            return centres + offsets / self.n_points * reference[:, :, None, :, None, 2:] / 2
        widths_and_heights = [(int(width), int(height)) for height, width in shapes]
        return centres + offsets / offsets.new_tensor(widths_and_heights).view(1, 1, 1, -1, 1, 2)
