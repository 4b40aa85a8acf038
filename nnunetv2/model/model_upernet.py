"""UperNet on a ViT (Xiao et al., "Unified Perceptual Parsing", 2018, https://arxiv.org/abs/1807.10221).

backbone maps → pyramid pooling on the deepest, top-down sum of the others → fused features → upsampling → logits
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2.model.segmentation_model import ViTSegmentationModel
from nnunetv2.model.upsample import ProgressiveUpsampleDecoder, group_norm, resize


class ConvNormAct(nn.Sequential):
    """Convolution without bias, group norm, ReLU: (B, C_in, h, w) → (B, C_out, h, w).

    Group instead of batch norm: the pooled maps are as small as 1×1, where batch norm fails for a batch of one. For the
    same reason there are at least two channels in a group.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False),
            group_norm(out_channels, max_groups=out_channels // 2),
            nn.ReLU(inplace=True),
        )


class PyramidPooling(nn.Module):
    """Pyramid pooling (Zhao et al., PSPNet, 2017): (B, C_in, h, w) → (B, C_out, h, w).

    Args:
        in_channels: C_in.
        out_channels: C_out, also of each branch.
        pool_scales: sides of the pooled maps.
    """

    def __init__(self, in_channels: int, out_channels: int, pool_scales: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvNormAct(in_channels, out_channels, 1))
            for scale in pool_scales
        )
        self.bottleneck = ConvNormAct(in_channels + len(pool_scales) * out_channels, out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Pool (B, in_channels, h, w) at all scales and fuse to (B, out_channels, h, w)."""
        pooled = [resize(branch(x), x.shape[-2:]) for branch in self.branches]
        return self.bottleneck(torch.cat([x, *pooled], dim=1))


class UperNetHead(nn.Module):
    """The feature pyramid of UperNet; it gives features, no class scores.

    Args:
        in_channels: channels of the feature maps, shallow to deep.
        hidden_size: channels within the pyramid and of the result.
        pool_scales: sides of the maps of the pyramid pooling.
    """

    def __init__(self, in_channels: Sequence[int], hidden_size: int, pool_scales: Sequence[int]) -> None:
        super().__init__()
        self.pyramid_pooling = PyramidPooling(in_channels[-1], hidden_size, pool_scales)
        self.laterals = nn.ModuleList(ConvNormAct(channels, hidden_size, 1) for channels in in_channels[:-1])
        self.smooth = nn.ModuleList(ConvNormAct(hidden_size, hidden_size, 3) for _ in in_channels[:-1])
        self.fuse = ConvNormAct(len(in_channels) * hidden_size, hidden_size, 3)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Fuse maps (B, in_channels[i], h_i, w_i), shallow to deep, to (B, hidden_size, h_0, w_0)."""
        levels = [lateral(x) for lateral, x in zip(self.laterals, features[:-1], strict=True)]
        levels.append(self.pyramid_pooling(features[-1]))
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + resize(levels[i], levels[i - 1].shape[-2:])
        levels[:-1] = [smooth(x) for smooth, x in zip(self.smooth, levels[:-1], strict=True)]
        return self.fuse(torch.cat([resize(x, levels[0].shape[-2:]) for x in levels], dim=1))


class UperNetSegmentationModel(ViTSegmentationModel):
    """UperNet on a ViT.

    Args:
        backbone_name: a family of the registry, or `timm:<name>`.
        backbone_size: a size of the family.
        num_classes: number of classes.
        backbone_arguments: the next ones of `ViTSegmentationModel`.
        hidden_size: channels of the pyramid; at least 2.
        pool_scales: sides of the maps of the pyramid pooling.
        use_progressive_upsample: upsample by learned stages with features of the backbone as skip connections;
            otherwise classify at the patch grid and resize the logits.
        decoder_dropout: probability that a channel is dropped in the learned stages, in [0, 1).
        backbone_options: see `ViTSegmentationModel`.
    """

    def __init__(
        self,
        backbone_name: str = "dinov3",
        backbone_size: str = "large",
        num_classes: int = 1,
        *backbone_arguments: Any,
        hidden_size: int = 512,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        use_progressive_upsample: bool = True,
        decoder_dropout: float = 0.1,
        **backbone_options: Any,
    ) -> None:
        super().__init__(backbone_name, backbone_size, num_classes, *backbone_arguments, **backbone_options)
        if hidden_size < 2:
            raise ValueError(f"UperNet's hidden_size must be at least 2, found {hidden_size}")
        if not pool_scales or min(pool_scales) < 1:
            raise ValueError(f"UperNet's pool_scales must be at least 1 each, found {list(pool_scales)}")
        if not 0 <= decoder_dropout < 1:
            raise ValueError(f"UperNet's decoder_dropout must be in [0, 1), found {decoder_dropout}")
        levels = len(self.feature_indices)
        self.decode_head = UperNetHead([self.embed_dim] * levels, hidden_size, pool_scales)
        self.upsampler: ProgressiveUpsampleDecoder | None = None
        self.classifier: nn.Conv2d | None = None
        if use_progressive_upsample:
            skips = [self.embed_dim] * (levels - 1)
            self.upsampler = ProgressiveUpsampleDecoder(hidden_size, num_classes, skips, decoder_dropout)
        else:
            self.classifier = nn.Conv2d(hidden_size, num_classes, 1)

    def decode(self, features: list[Tensor], output_size: Sequence[int]) -> Tensor:
        """Map features, shallow to deep, to logits (B, num_classes, *output_size)."""
        x = self.decode_head(features)
        if self.upsampler is None:
            return resize(self.classifier(x), output_size)
        # deepest first; the shallowest map has no stage left
        return self.upsampler(x, features[:0:-1], output_size)


create_segmentation_model = UperNetSegmentationModel
