"""ViT-Adapter on a plain ViT (Chen et al., 2023, https://arxiv.org/abs/2205.08534), with extractors only.

image → convolutions: tokens at strides 8, 16, 32, which cross-attend to the ViT's feature maps → maps at four strides
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dinov3.eval.segmentation.models.utils.batch_norm import BatchNorm2d
from dinov3.eval.segmentation.models.utils.extent import resize
from dinov3.eval.segmentation.models.utils.ms_deform_attn import MSDeformAttn, pixel_centres
from dinov3.models.features import get_vit_features

COARSEST_STRIDE = 32
STRIDES = (8, 16, 32)
GRID_STRIDE = 16  # of the ViT's feature maps


class SpatialPriorModule(nn.Module):
    """Convolutions that keep the spatial detail for which patches are too coarse.

    Args:
        in_channels: channels of the image.
        inplanes: channels at stride 4; 2, 4 and 4 times as many at 8, 16 and 32.
        embed_dim: channels of the results.
    """

    def __init__(self, in_channels: int, inplanes: int, embed_dim: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *_conv_norm_act(in_channels, inplanes, stride=2),
            *_conv_norm_act(inplanes, inplanes, stride=1),
            *_conv_norm_act(inplanes, inplanes, stride=1),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.conv2 = nn.Sequential(*_conv_norm_act(inplanes, 2 * inplanes, stride=2))
        self.conv3 = nn.Sequential(*_conv_norm_act(2 * inplanes, 4 * inplanes, stride=2))
        self.conv4 = nn.Sequential(*_conv_norm_act(4 * inplanes, 4 * inplanes, stride=2))
        self.fc1 = nn.Conv2d(inplanes, embed_dim, 1)
        self.fc2 = nn.Conv2d(2 * inplanes, embed_dim, 1)
        self.fc3 = nn.Conv2d(4 * inplanes, embed_dim, 1)
        self.fc4 = nn.Conv2d(4 * inplanes, embed_dim, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Map images (B, C, H, W) to a map (B, embed_dim, H/4, W/4) and tokens (B, n, embed_dim) at 8, 16 and 32."""
        c1 = self.stem(x)
        c2 = self.conv2(c1)
        c3 = self.conv3(c2)
        c4 = self.conv4(c3)
        return self.fc1(c1), _tokens(self.fc2(c2)), _tokens(self.fc3(c3)), _tokens(self.fc4(c4))


def _conv_norm_act(in_channels: int, out_channels: int, stride: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
    return convolution, BatchNorm2d(out_channels), nn.ReLU(inplace=True)


def _tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


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
