"""Sine position encoding of maps (Carion et al., "DETR", 2020, https://arxiv.org/abs/2005.12872, appendix A.4)."""

import math

import torch
from torch import Tensor, nn

EPSILON = 1e-6


class PositionEmbeddingSine(nn.Module):
    """Sines and cosines of the row and of the column.

    Args:
        num_pos_feats: channels for the row, and as many for the column.
        temperature: base of the geometric series of periods.
        normalize: whether to scale rows and columns to (0, `scale`].
        scale: by default 2π; only with `normalize`.

    Raises:
        ValueError: a scale without `normalize`.
    """

    def __init__(
        self,
        num_pos_feats: int = 64,
        temperature: float = 10000,
        normalize: bool = False,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        if scale is not None and not normalize:
            raise ValueError("a scale of the position encoding needs normalize=True")
        self.num_pos_feats = num_pos_feats
        self.temperature = temperature
        self.normalize = normalize
        self.scale = 2 * math.pi if scale is None else scale

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode the positions of a map.

        Args:
            x: any map (B, C, h, w); only its shape, type and device count.
            mask: True where the map is padding, (B, h, w).

        Returns:
            The encoding, (B, 2 · num_pos_feats, h, w), of the map's type, the row's channels first.
        """
        if mask is None:
            mask = torch.zeros((len(x), *x.shape[-2:]), dtype=torch.bool, device=x.device)
        inside = (~mask).to(torch.float32)
        return torch.cat([self._encode(inside.cumsum(axis), axis) for axis in (1, 2)], dim=1).to(x.dtype)

    def _encode(self, position: Tensor, axis: int) -> Tensor:
        if self.normalize:
            last = position.narrow(axis, position.shape[axis] - 1, 1)
            position = position / (last + EPSILON) * self.scale
        pair = torch.arange(self.num_pos_feats, device=position.device) // 2
        periods = self.temperature ** (2.0 * pair / self.num_pos_feats)
        angles = position.unsqueeze(1) / periods.view(-1, 1, 1)
        return torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=2).flatten(1, 2)
