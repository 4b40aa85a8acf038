"""The extractor of ViT-Adapter: tokens of the convolutions cross-attend to feature maps of the ViT.

Chen et al., 2023, https://arxiv.org/abs/2205.08534, section 3.4.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dinov3.eval.segmentation.models.utils.ms_deform_attn import MSDeformAttn


class ConvFFN(nn.Module):
    """A feed-forward network with a depthwise 3×3 convolution inside, on each map by itself.

    Args:
        dim: channels of input and result.
        hidden_dim: channels inside.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        convolution = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)
        self.dwconv = nn.ModuleDict({"dwconv": convolution})  # nested as the reference's names are
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """Map tokens (B, Σ h·w, dim) of maps with these (h, w) to the same shape."""
        flat = self.fc1(x).transpose(1, 2).split([height * width for height, width in shapes], dim=-1)
        maps = [part.unflatten(-1, shape) for part, shape in zip(flat, shapes, strict=True)]
        convolved = torch.cat([self.dwconv["dwconv"](part).flatten(2) for part in maps], dim=-1)
        return self.fc2(F.gelu(convolved.transpose(1, 2)))


class Extractor(nn.Module):
    """Deformable cross-attention of the convolutions' tokens to a feature map of the ViT, and a feed-forward network.

    Args:
        dim: channels.
        n_points: sampling points per head.
        deform_num_heads: attention heads.
        drop_path_rate: probability that the feed-forward network is skipped in training.
        with_cffn: whether a feed-forward network follows the attention.
        cffn_ratio: its channels inside, as a share of `dim`.
        deform_ratio: channels of the attention's values, as a share of `dim`.
        with_cp: recompute activations in the backward pass instead of keeping them.

    Raises:
        ValueError: the attention heads cannot share the channels of the values.
    """

    def __init__(
        self,
        dim: int,
        *,
        n_points: int = 4,
        deform_num_heads: int = 16,
        drop_path_rate: float = 0.3,
        with_cffn: bool = True,
        cffn_ratio: float = 0.25,
        deform_ratio: float = 0.5,
        with_cp: bool = True,
    ) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(dim, eps=1e-6)
        self.feat_norm = nn.LayerNorm(dim, eps=1e-6)
        self.attn = MSDeformAttn(dim, 1, deform_num_heads, n_points, deform_ratio)
        self.with_cp = with_cp
        self.ffn: ConvFFN | None = None
        if with_cffn:
            self.ffn = ConvFFN(dim, int(dim * cffn_ratio))
            self.ffn_norm = nn.LayerNorm(dim, eps=1e-6)
            self.drop_path = DropPath(drop_path_rate)

    def forward(
        self, query: Tensor, points: Tensor, features: Tensor, grid: tuple[int, int], shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Cross-attend to a feature map.

        Args:
            query: tokens of the convolutions' maps, (B, Σ h·w, dim).
            points: their reference points, (1, Σ h·w, 1, 2), 0 to 1.
            features: patch tokens of the ViT, (B, n, dim).
            grid: (h, w) of these.
            shapes: (h, w) of the maps that `query` holds.

        Returns:
            Tokens like `query`.
        """
        arguments = (query, points, features, grid, shapes)
        if self.with_cp and self.training and torch.is_grad_enabled():
            return checkpoint(self._extract, *arguments, use_reentrant=False)
        return self._extract(*arguments)

    def _extract(
        self, query: Tensor, points: Tensor, features: Tensor, grid: tuple[int, int], shapes: list[tuple[int, int]]
    ) -> Tensor:
        query = query + self.attn(self.query_norm(query), points, self.feat_norm(features), [grid])
        if self.ffn is None:
            return query
        return query + self.drop_path(self.ffn(self.ffn_norm(query), shapes))


class Interaction(nn.Module):
    """An extractor, and further ones on the same feature map where wanted.

    Args:
        num_extra: number of further ones.
        dim: channels.
        extractor_options: further keywords of `Extractor`.
    """

    def __init__(self, num_extra: int, dim: int, **extractor_options: Any) -> None:
        super().__init__()
        self.extractor = Extractor(dim, **extractor_options)
        self.extra_extractors = nn.ModuleList(Extractor(dim, **extractor_options) for _ in range(num_extra))

    def forward(self, query: Tensor, *where: Tensor | tuple | list) -> Tensor:
        """Map tokens as `Extractor` does."""
        for extractor in (self.extractor, *self.extra_extractors):
            query = extractor(query, *where)
        return query
