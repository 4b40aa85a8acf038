"""UNETR in 2D on a ViT (Hatamizadeh et al., "UNETR", 2022, https://arxiv.org/abs/2103.10504).

maps of four blocks → branches of transposed convolutions to 2, 4, 8 and 16 times the grid → U-Net decoder → logits
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2.model.option_checks import check_levels, check_one_of
from nnunetv2.model.segmentation_model import ViTSegmentationModel
from nnunetv2.model.upsample import group_norm, resize

UPSAMPLE_MODES = ("deconv", "bilinear")
MAX_GROUPS = 8


class NormAct(nn.Sequential):
    """Group norm and leaky ReLU on (B, C, h, w)."""

    def __init__(self, channels: int, negative_slope: float) -> None:
        super().__init__(group_norm(channels, MAX_GROUPS), nn.LeakyReLU(negative_slope, inplace=True))


class ConvBlock(nn.Sequential):
    """Two 3×3 convolutions, each with norm and activation: (B, C_in, h, w) → (B, C_out, h, w)."""

    def __init__(self, in_channels: int, out_channels: int, negative_slope: float) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            NormAct(out_channels, negative_slope),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            NormAct(out_channels, negative_slope),
        )


class DeconvBlock(nn.Sequential):
    """Doubling by a transposed convolution, then a 3×3 convolution: (B, C_in, h, w) → (B, C_out, 2h, 2w)."""

    def __init__(self, in_channels: int, out_channels: int, negative_slope: float) -> None:
        super().__init__(
            nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            NormAct(out_channels, negative_slope),
        )


class Branch(nn.Sequential):
    """From a map of the backbone to 2^doublings times its size: (B, C_in, h, w) → (B, C_out, 2^n h, 2^n w)."""

    def __init__(self, in_channels: int, out_channels: int, doublings: int, negative_slope: float) -> None:
        widths = [in_channels] + [out_channels] * doublings
        super().__init__(
            *(DeconvBlock(a, b, negative_slope) for a, b in itertools.pairwise(widths)),
        )


class DecoderStage(nn.Module):
    """Doubling, a skip connection, and two convolutions.

    Args:
        in_channels: channels from the stage below.
        out_channels: channels of the skip connection and of the result.
        upsample_mode: `deconv` (transposed convolution to `out_channels`) or `bilinear`.
        negative_slope: of the activations.
    """

    def __init__(self, in_channels: int, out_channels: int, upsample_mode: str, negative_slope: float) -> None:
        super().__init__()
        if upsample_mode == "deconv":
            self.up = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
            stacked = 2 * out_channels
        else:
            self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
            stacked = in_channels + out_channels
        self.conv = ConvBlock(stacked, out_channels, negative_slope)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Join (B, in_channels, h, w) and a skip (B, out_channels, 2h, 2w) to (B, out_channels, 2h, 2w)."""
        return self.conv(torch.cat([self.up(x), skip], dim=1))


class UNETRDecoder(nn.Module):
    """The decoder of UNETR, up to features at 16 times the grid.

    Args:
        in_channels: channels of the backbone's maps.
        channels: five widths, from the grid to the full size.
        upsample_mode: see `DecoderStage`.
        negative_slope: of the activations.
    """

    def __init__(self, in_channels: int, channels: Sequence[int], upsample_mode: str, negative_slope: float) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            Branch(in_channels, width, doublings, negative_slope)
            for doublings, width in enumerate(channels[:4], start=1)
        )
        self.stages = nn.ModuleList(
            DecoderStage(channels[i], channels[i + 1], upsample_mode, negative_slope) for i in range(3)
        )
        self.last = ConvBlock(channels[3], channels[4], negative_slope)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map four maps (B, in_channels, h, w), shallow to deep, to features (B, channels[4], 16h, 16w)."""
        x, *skips = (branch(feature) for branch, feature in zip(self.branches, features[::-1], strict=True))
        for stage, skip in zip(self.stages, skips, strict=True):
            x = stage(x, skip)
        return self.last(x)


class UNETRSegmentationModel(ViTSegmentationModel):
    """UNETR on a ViT.

    Args:
        backbone_name: a family of the registry, or `timm:<name>`.
        backbone_size: a size of the family.
        num_classes: number of classes.
        backbone_arguments: the next ones of `ViTSegmentationModel`.
        decoder_channels: five widths, from the grid of patches to the full size.
        negative_slope: of the leaky ReLUs, in [0, 1].
        upsample_mode: `deconv` (transposed convolutions) or `bilinear` between the stages.
        image_branch: also give the last stage convolutions of the image itself; in the paper they are the skip
            connection at full size.
        backbone_options: see `ViTSegmentationModel`; there must be four feature layers.
    """

    def __init__(
        self,
        backbone_name: str = "dinov3",
        backbone_size: str = "large",
        num_classes: int = 1,
        *backbone_arguments: Any,
        decoder_channels: Sequence[int] = (512, 256, 128, 64, 32),
        negative_slope: float = 0.01,
        upsample_mode: str = "deconv",
        image_branch: bool = False,
        **backbone_options: Any,
    ) -> None:
        super().__init__(backbone_name, backbone_size, num_classes, *backbone_arguments, **backbone_options)
        check_levels("UNETR", self.feature_indices)
        check_one_of("upsample_mode", upsample_mode, UPSAMPLE_MODES)
        if len(decoder_channels) != 5 or not all(isinstance(width, int) and width > 0 for width in decoder_channels):
            raise ValueError(f"decoder_channels must be five positive whole numbers, found {list(decoder_channels)}")
        if not 0 <= negative_slope <= 1:
            raise ValueError(f"negative_slope must be in [0, 1], found {negative_slope}")
        self.decoder = UNETRDecoder(self.embed_dim, decoder_channels, upsample_mode, negative_slope)
        width = decoder_channels[4]
        self.image_stem = ConvBlock(self.input_channels, width, negative_slope) if image_branch else None
        self.image_fusion = ConvBlock(2 * width, width, negative_slope) if image_branch else None
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return four maps of normalised images (B, C, H, W), behind the images themselves."""
        return [x, *super().encode(x)]

    def decode(self, features: list[Tensor], output_size: Sequence[int]) -> Tensor:
        """Map the images and four maps, shallow to deep, to logits (B, num_classes, *output_size)."""
        image, *maps = features
        x = self.decoder(maps)
        if self.image_stem is not None:
            x = self.image_fusion(torch.cat([resize(x, output_size), self.image_stem(image)], dim=1))
        logits = self.classifier(x)
        return logits if logits.shape[-2:] == tuple(output_size) else resize(logits, output_size)


create_segmentation_model = UNETRSegmentationModel
