"""ViT-Adapter on a plain ViT (Chen et al., 2023, https://arxiv.org/abs/2205.08534), with extractors only.

image → convolutions: tokens at strides 8, 16, 32, which cross-attend to the ViT's feature maps → maps at four strides
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinov3.eval.segmentation.models.backbone.extractor import Interaction
from dinov3.eval.segmentation.models.backbone.spatial_prior import SpatialPriorModule
from dinov3.eval.segmentation.models.utils.batch_norm import BatchNorm2d
from dinov3.eval.segmentation.models.utils.extent import resize
from dinov3.eval.segmentation.models.utils.ms_deform_attn import MSDeformAttn, pixel_centres
from dinov3.models.features import get_vit_features

COARSEST_STRIDE = 32
STRIDES = (8, 16, 32)
GRID_STRIDE = 16  # of the ViT's feature maps


class ViTAdapter(nn.Module):
    """Maps of four strides from an image and a plain ViT's patch tokens; the ViT itself is not part of it.

    Args:
        embed_dim: channels of the ViT.
        in_channels: channels of the image.
        conv_inplane: channels of the convolutions at stride 4.
        add_vit_feature: whether to add the ViT's feature maps to the results.
        use_extra_extractor: whether two more extractors follow the last interaction.
        extractor_options: further keywords of `Extractor`, such as `n_points`.
    """

    def __init__(
        self,
        embed_dim: int,
        in_channels: int = 3,
        *,
        conv_inplane: int = 64,
        add_vit_feature: bool = True,
        use_extra_extractor: bool = True,
        **extractor_options: Any,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.add_vit_feature = add_vit_feature
        self.level_embed = nn.Parameter(torch.randn(len(STRIDES), embed_dim))
        self.spm = SpatialPriorModule(in_channels, conv_inplane, embed_dim)
        extra = [0, 0, 0, 2 if use_extra_extractor else 0]
        self.interactions = nn.ModuleList(Interaction(number, embed_dim, **extractor_options) for number in extra)
        self.up = nn.ConvTranspose2d(embed_dim, embed_dim, 2, stride=2)
        self.norm1, self.norm2, self.norm3, self.norm4 = (BatchNorm2d(embed_dim) for _ in range(4))
        for part in (self.spm, self.interactions, self.up):
            part.apply(_initialise)

    def adapt(self, x: Tensor, layers: Sequence[Tensor]) -> dict[str, Tensor]:
        """Map images and the patch tokens of a ViT.

        Args:
            x: images, (B, C, H, W), H and W multiples of 32.
            layers: the patch tokens of four blocks of the ViT, (B, H/16 · W/16, embed_dim) each (see `vit_tokens`).

        Returns:
            `1` to `4`: maps (B, embed_dim, h, w) at strides 4, 8, 16 and 32.
        """
        shapes = [(x.shape[-2] // stride, x.shape[-1] // stride) for stride in STRIDES]
        grid = grid_of(x)
        c1, *coarser = self.spm(x)
        tokens = torch.cat([c + level for c, level in zip(coarser, self.level_embed, strict=True)], dim=1)
        points = pixel_centres(shapes, tokens)
        for interaction, layer in zip(self.interactions, layers, strict=True):
            tokens = interaction(tokens, points, layer, grid, shapes)
        flat = tokens.transpose(1, 2).split([h * w for h, w in shapes], dim=-1)
        c2, c3, c4 = (part.unflatten(-1, shape) for part, shape in zip(flat, shapes, strict=True))
        maps = [self.up(c2) + c1, c2, c3, c4]
        if self.add_vit_feature:
            vit_maps = [layer.transpose(1, 2).unflatten(-1, grid) for layer in layers]
            maps = [c + resize(vit, c.shape[-2:]) for c, vit in zip(maps, vit_maps, strict=True)]
        norms = (self.norm1, self.norm2, self.norm3, self.norm4)
        return {str(i): norm(c) for i, (norm, c) in enumerate(zip(norms, maps, strict=True), start=1)}


def grid_of(x: Tensor) -> tuple[int, int]:
    """(height, width) of the ViT's feature maps that the adapter reads, for images (B, C, H, W)."""
    return x.shape[-2] // GRID_STRIDE, x.shape[-1] // GRID_STRIDE


def vit_tokens(backbone: nn.Module, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """The patch tokens of some blocks, after the final norm, on the grid at stride 16.

    Args:
        backbone: a plain ViT of timm. If its patches are of another size than 16, it sees the image resized so that its
            grid is the one at stride 16.
        x: images, (B, C, H, W).
        layers: 0-based indices of the blocks.

    Returns:
        (B, H/16 · W/16, embed_dim) per block.
    """
    size = tuple(side * patch for side, patch in zip(grid_of(x), backbone.patch_embed.patch_size, strict=True))
    if size != tuple(x.shape[-2:]):
        x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
    return get_vit_features(backbone, x, layers, output_fmt="NLC")


def _initialise(module: nn.Module) -> None:
    if isinstance(module, MSDeformAttn):
        module.reset_parameters()
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
