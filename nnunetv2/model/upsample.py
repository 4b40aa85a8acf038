"""Upsampling by learned stages, from a feature map at the patch grid to logits at the size of the image."""

import itertools
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from dinov3.eval.segmentation.models.utils.extent import resize

MIN_CHANNELS = 32


def group_norm(channels: int, max_groups: int = 32) -> nn.GroupNorm:
    """Group normalisation with the largest of 32, 16, 8, 4, 2, 1 groups that divides the channels.

    For 32 channels that is instance normalisation, as throughout nnU-Net; `max_groups` says less for maps of one pixel.
    """
    groups = next(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0 and g <= max(1, max_groups))
    return nn.GroupNorm(groups, channels)


class RefineStage(nn.Sequential):
    """Two 3×3 convolutions with group norm, ReLU and dropout in between: (B, C_in, h, w) → (B, C_out, h, w).

    Args:
        in_channels: C_in.
        out_channels: C_out.
        dropout: probability that a channel is dropped.
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            group_norm(out_channels),
            nn.ReLU(inplace=True),
            nn.Dropout2d(dropout),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            group_norm(out_channels),
            nn.ReLU(inplace=True),
        )


def halving_channels(channels: int, num_stages: int) -> list[int]:
    """`channels`, then half of it at each stage, never below 32: one entry per stage."""
    return [max(MIN_CHANNELS, channels // 2**stage) for stage in range(num_stages)]


class ProgressiveUpsampler(nn.Module):
    """Stages of doubling and refining, a classifier, and a bilinear rest.

    The classifier (1×1) comes before the last resizing: the two commute, and so it works on the smaller map.

    Args:
        in_channels: channels of the feature map.
        num_classes: number of classes.
        hidden_channels: channels after the first stage; each further stage has half, at least 32.
        num_stages: number of doublings.
        dropout: probability that a channel is dropped within a stage.
    """

    def __init__(
        self, in_channels: int, num_classes: int, hidden_channels: int = 256, num_stages: int = 2, dropout: float = 0.1
    ) -> None:
        super().__init__()
        widths = [in_channels, *halving_channels(hidden_channels, num_stages)]
        self.stages = nn.ModuleList(RefineStage(wide, narrow, dropout) for wide, narrow in itertools.pairwise(widths))
        self.classifier = nn.Conv2d(widths[-1], num_classes, 1)

    def forward(self, x: Tensor, output_size: Sequence[int]) -> Tensor:
        """Map features (B, in_channels, h, w) to logits (B, num_classes, *output_size)."""
        for stage in self.stages:
            x = stage(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))
        return resize(self.classifier(x), output_size)


class ProgressiveUpsampleDecoder(nn.Module):
    """Four stages of upsampling and refining, with features of the backbone added after all but the last.

    The last stage goes straight to the output size, so that any patch size fits.

    Args:
        in_channels: channels of the feature map; each stage halves them, at least 32.
        num_classes: number of classes.
        skip_channels: channels of the skip features, in the order of the stages (deepest first): one less than stages.
        dropout: probability that a channel is dropped within a stage.
    """

    def __init__(self, in_channels: int, num_classes: int, skip_channels: Sequence[int], dropout: float = 0.1) -> None:
        super().__init__()
        widths = [in_channels, *halving_channels(in_channels // 2, len(skip_channels) + 1)]
        self.stages = nn.ModuleList(RefineStage(wide, narrow, dropout) for wide, narrow in itertools.pairwise(widths))
        self.skips = nn.ModuleList(
            nn.Conv2d(skip, width, 1, bias=False) for skip, width in zip(skip_channels, widths[1:], strict=False)
        )
        self.classifier = nn.Conv2d(widths[-1], num_classes, 1)

    def forward(self, x: Tensor, skip_features: Sequence[Tensor], output_size: Sequence[int]) -> Tensor:
        """Decode a feature map.

        Args:
            x: features, (B, in_channels, h, w).
            skip_features: (B, skip_channels[i], h_i, w_i), in the order of the stages.
            output_size: (H, W) of the logits.

        Returns:
            Logits, (B, num_classes, H, W).
        """
        for stage, skip, features in zip(self.stages[:-1], self.skips, skip_features, strict=True):
            doubled = [min(2 * side, limit) for side, limit in zip(x.shape[-2:], output_size, strict=True)]
            x = stage(resize(x, doubled))
            # projected before it is resized: the two commute, and the smaller map is cheaper
            x = x + resize(skip(features), x.shape[-2:])
        return self.classifier(self.stages[-1](resize(x, output_size)))
