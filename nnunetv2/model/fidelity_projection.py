"""The fidelity-aware projection of Dino U-Net (2025, https://arxiv.org/abs/2508.20909).

map of each scale → what all scales share, and what is its own → the first modulates the second → refined, at a new
width
"""

from collections.abc import Sequence

from torch import Tensor, nn

from nnunetv2.model.upsample import group_norm

REDUCTION = 16  # of the squeeze-and-excitation
NEGATIVE_SLOPE = 1e-2


class SqueezeExcite(nn.Module):
    """Weights the channels by what the whole map holds (Hu et al., 2018, https://arxiv.org/abs/1709.01507).

    Args:
        channels: of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(1, channels // REDUCTION)
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.act = nn.LeakyReLU(NEGATIVE_SLOPE)  # leaky: with two units, a dead one would be half of them
        self.excite = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, h, w) to the same shape."""
        return x * self.excite(self.act(self.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid()


class Refinement(nn.Module):
    """To another width, with a depthwise convolution and a shortcut: (B, C_in, h, w) → (B, C_out, h, w).

    Args:
        in_channels: C_in.
        out_channels: C_out.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1),
            group_norm(out_channels, out_channels // 2),  # of two channels at least: maps may be of one pixel
            nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, groups=out_channels),
            nn.Conv2d(out_channels, out_channels, 1),
            nn.Conv2d(out_channels, out_channels, 1),
            SqueezeExcite(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, h, w) to (B, C_out, h, w)."""
        return self.body(x) + self.shortcut(x)


class ScaleProjection(nn.Module):
    """The part of a scale: what is its own, modulated by what all scales share (FiLM), and refined.

    Args:
        in_channels: channels of the map.
        rank: channels of the two projections.
        out_channels: channels of the result.
    """

    def __init__(self, in_channels: int, rank: int, out_channels: int) -> None:
        super().__init__()
        self.specific = nn.Conv2d(in_channels, rank, 1)
        self.modulation = nn.Conv2d(rank, 2 * rank, 1)
        self.refinement = Refinement(rank, out_channels)

    def forward(self, x: Tensor, shared: Tensor) -> Tensor:
        """Map a map (B, in_channels, h, w) and its shared part (B, rank, h, w) to (B, out_channels, h, w)."""
        scale, shift = self.modulation(shared).chunk(2, dim=1)
        return self.refinement((1 + scale) * self.specific(x) + shift)  # 1 +: starts near the specific part itself


class FidelityAwareProjection(nn.Module):
    """Projects the maps of all scales to the widths of a U-Net.

    Args:
        in_channels: channels of all maps.
        out_channels: channels of the results, one number per scale.
        rank: channels of the shared and of the scales' own projections.
    """

    def __init__(self, in_channels: int, out_channels: Sequence[int], rank: int) -> None:
        super().__init__()
        self.shared = nn.Conv2d(in_channels, rank, 1)
        self.scales = nn.ModuleList(ScaleProjection(in_channels, rank, width) for width in out_channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map (B, in_channels, h_i, w_i) of every scale to (B, out_channels[i], h_i, w_i)."""
        return [scale(x, self.shared(x)) for scale, x in zip(self.scales, maps, strict=True)]
