"""The light decoder of Primus on a ViT (Wald et al., "Primus", 2025, https://arxiv.org/abs/2503.01835).

Its multiscale form stacks the maps of four depths (Li et al., "MedDINOv3", 2025, https://arxiv.org/abs/2509.02379).

map(s) → 1×1 projection → doubling by transposed convolutions, channels halved each time → logits
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from nnunetv2.model.segmentation_model import LastLayerModel, ViTSegmentationModel
from nnunetv2.model.upsample import resize

NEGATIVE_SLOPE = 1e-2


class PatchDecoder(nn.Sequential):
    """From tokens to classes by transposed convolutions: (B, C_in, h, w) → (B, num_classes, p h, p w).

    Args:
        in_channels: C_in; each doubling halves the channels.
        num_classes: number of classes.
        patch_embed_size: p, a power of two.
    """

    def __init__(self, in_channels: int, num_classes: int, patch_embed_size: int) -> None:
        widths = [in_channels // 2**i for i in range(patch_embed_size.bit_length())]
        stages = (
            nn.Sequential(nn.ConvTranspose2d(wide, narrow, 2, stride=2), LayerNorm2d(narrow, eps=1e-6), nn.GELU())
            for wide, narrow in itertools.pairwise(widths)
        )
        super().__init__(*stages, nn.Conv2d(widths[-1], num_classes, 1))


class PrimusDecoder(nn.Module):
    """Projection and patch decoder.

    Args:
        in_channels: channels of the concatenated maps.
        channels: channels of the widest stage of the decoder.
        num_classes: number of classes.
        patch_embed_size: how many times larger the logits are than the maps, a power of two.
    """

    def __init__(self, in_channels: int, channels: int, num_classes: int, patch_embed_size: int) -> None:
        super().__init__()
        is_power = patch_embed_size > 0 and patch_embed_size & (patch_embed_size - 1) == 0
        if not is_power:
            raise ValueError(f"patch_embed_size must be a power of two, found {patch_embed_size}")
        if channels < patch_embed_size:
            raise ValueError(
                f"embed_dim is too small: the decoder has {channels} channels (embed_dim for every depth), which "
                f"cannot be halved down to patch_embed_size {patch_embed_size}"
            )
        self.projection = nn.Conv2d(in_channels, channels, 1) if channels != in_channels else nn.Identity()
        self.patch_decoder = PatchDecoder(channels, num_classes, patch_embed_size)
        self.apply(InitWeights_He(NEGATIVE_SLOPE))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map maps (B, C_i, h, w) to logits (B, num_classes, p h, p w)."""
        return self.patch_decoder(self.projection(torch.cat(list(features), dim=1)))


class PrimusMultiscaleSegmentationModel(ViTSegmentationModel):
    """Primus on the concatenated maps of several depths of a ViT.

    Args:
        backbone_name: a family of the registry, or `timm:<name>`.
        backbone_size: a size of the family.
        num_classes: number of classes.
        backbone_arguments: the next ones of `ViTSegmentationModel`.
        embed_dim: channels per depth in the decoder; by default the backbone's, without a projection.
        patch_embed_size: how many times larger the decoder's logits are than its maps, a power of two; by default the
            one next to the patch size of the backbone (16 for 14).
        interaction_indices: 0-based blocks whose maps are read; another name of `out_layers`.
        backbone_options: see `ViTSegmentationModel`.
    """

    def __init__(
        self,
        backbone_name: str = "dinov3",
        backbone_size: str = "large",
        num_classes: int = 1,
        *backbone_arguments: Any,
        embed_dim: int | None = None,
        patch_embed_size: int | None = None,
        interaction_indices: Sequence[int] | None = None,
        **backbone_options: Any,
    ) -> None:
        if interaction_indices is not None:
            named = backbone_options.get("out_layers")
            if named is not None and list(named) != list(interaction_indices):
                raise ValueError(f"interaction_indices {list(interaction_indices)} and out_layers {list(named)} differ")
            backbone_options["out_layers"] = interaction_indices
        super().__init__(backbone_name, backbone_size, num_classes, *backbone_arguments, **backbone_options)
        depths = len(self.feature_indices)
        self.decoder = PrimusDecoder(
            depths * self.embed_dim,
            depths * (self.embed_dim if embed_dim is None else embed_dim),
            num_classes,
            _next_power_of_two(self.patch_size) if patch_embed_size is None else patch_embed_size,
        )

    def decode(self, features: list[Tensor], output_size: Sequence[int]) -> Tensor:
        """Map features to logits (B, num_classes, *output_size)."""
        logits = self.decoder(features)
        return logits if logits.shape[-2:] == tuple(output_size) else resize(logits, output_size)


class PrimusSegmentationModel(LastLayerModel, PrimusMultiscaleSegmentationModel):
    """Primus on the last map of a ViT; the arguments are those of `PrimusMultiscaleSegmentationModel`."""


def _next_power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def create_segmentation_model(
    backbone_name: str = "dinov3",
    backbone_size: str = "large",
    num_classes: int = 1,
    *backbone_arguments: Any,
    multiscale: bool = False,
    embed_dim: int | None = None,
    patch_embed_size: int | None = None,
    interaction_indices: Sequence[int] | None = None,
    **backbone_options: Any,
) -> PrimusMultiscaleSegmentationModel:
    """Create Primus on a ViT, with `multiscale` on four depths; see `PrimusMultiscaleSegmentationModel`."""
    model_class = PrimusMultiscaleSegmentationModel if multiscale else PrimusSegmentationModel
    return model_class(
        backbone_name,
        backbone_size,
        num_classes,
        *backbone_arguments,
        embed_dim=embed_dim,
        patch_embed_size=patch_embed_size,
        interaction_indices=interaction_indices,
        **backbone_options,
    )
