"""Mask2Former's pixel decoder (Cheng et al., 2022, https://arxiv.org/abs/2112.01527, section 3.1, appendix A).

maps of four strides → 1×1 convolutions → deformable attention over the three coarser → the finest added → mask features
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinov3.eval.segmentation.models.utils.extent import resize
from dinov3.eval.segmentation.models.utils.ms_deform_attn import MSDeformAttn, pixel_centres
from dinov3.eval.segmentation.models.utils.position_encoding import PositionEmbeddingSine
from dinov3.eval.segmentation.precision import without_autocast

NUM_GROUPS = 32
NUM_POINTS = 4  # sampling points per head and map


class GroupNorm(nn.GroupNorm):
    """Group norm that also takes groups of a single value, as maps of one pixel may have them (PyTorch's raises)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, h, w)."""
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class ConvNorm(nn.Conv2d):
    """A convolution, with a group norm or else a bias, and an activation where wanted.

    Args:
        in_channels: channels of the map.
        out_channels: channels of the result.
        kernel_size: odd; the size of the map stays.
        norm: `GN`, or empty for none.
        activation: what comes last.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, norm: str, activation: nn.Module | None = None
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=not norm)
        self.norm = GroupNorm(NUM_GROUPS, out_channels) if norm else nn.Identity()
        self.activation = activation or nn.Identity()
        nn.init.kaiming_uniform_(self.weight, a=1)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, h, w) to (B, out_channels, h, w)."""
        return self.activation(self.norm(super().forward(x)))


class EncoderLayer(nn.Module):
    """Deformable self-attention over all maps and a feed-forward network, each with a residual and a norm behind it.

    Args:
        d_model: channels.
        n_levels: number of maps.
        d_ffn: channels inside of the feed-forward network.
        dropout: probability that an activation is dropped.
        n_heads: number of attention heads.
    """

    def __init__(self, d_model: int, n_levels: int, *, d_ffn: int, dropout: float, n_heads: int) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(d_model, n_levels, n_heads, NUM_POINTS)
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, d_ffn)
        self.linear2 = nn.Linear(d_ffn, d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: Tensor, position: Tensor, reference_points: Tensor, shapes: Sequence[Sequence[int]]) -> Tensor:
        """Map tokens (B, n, d_model) and their positions, of the same shape, to (B, n, d_model)."""
        attended = self.self_attn(x + position, reference_points, x, shapes)
        x = self.norm1(x + self.dropout(attended))
        hidden = self.dropout(F.relu(self.linear1(x)))
        return self.norm2(x + self.dropout(self.linear2(hidden)))


class MSDeformAttnEncoder(nn.Module):
    """Deformable attention among maps of several sizes.

    Args:
        num_layers: number of layers.
        d_model: channels.
        n_levels: number of maps.
        layer_options: further keywords of `EncoderLayer`.
    """

    def __init__(self, num_layers: int, d_model: int, n_levels: int, **layer_options: Any) -> None:
        super().__init__()
        layers = [EncoderLayer(d_model, n_levels, **layer_options) for _ in range(num_layers)]
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})  # nested as the reference's names are
        self.level_encoding = nn.Parameter(torch.randn(n_levels, d_model))

    def forward(self, maps: Sequence[Tensor], positions: Sequence[Tensor]) -> list[Tensor]:
        """Map maps (B, d_model, h_i, w_i) and their position encodings, of the same shapes, to maps of these shapes."""
        shapes = [tuple(x.shape[-2:]) for x in maps]
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)
        position = torch.cat(
            [p.flatten(2).transpose(1, 2) + level for p, level in zip(positions, self.level_encoding, strict=True)],
            dim=1,
        )
        points = pixel_centres(shapes, tokens).expand(-1, -1, len(shapes), -1)
        for layer in self.encoder["layers"]:
            tokens = layer(tokens, position, points, shapes)
        flat = tokens.transpose(1, 2).split([height * width for height, width in shapes], dim=-1)
        return [x.unflatten(-1, shape) for x, shape in zip(flat, shapes, strict=True)]


class MSDeformAttnPixelDecoder(nn.Module):
    """The pixel decoder.

    Args:
        input_shape: per map its name and (channels, height, width, stride); only channels and strides are read.
        transformer_dropout: probability that an activation of the encoder is dropped.
        transformer_nheads: attention heads of the encoder.
        transformer_dim_feedforward: channels inside of its feed-forward networks.
        transformer_enc_layers: number of its layers.
        conv_dim: channels of the encoder and of the maps it gives.
        mask_dim: channels of the mask features.
        norm: `GN` (32 groups), or empty for none.
        transformer_in_features: names of the maps for the encoder; the finest, of which the mask features are made,
            is not for it even if it is named.
        common_stride: stride of the mask features; that of the finest map.

    Raises:
        ValueError: a name that `input_shape` lacks, an unknown norm, or another stride.
    """

    def __init__(
        self,
        input_shape: Mapping[str, Sequence[int]],
        *,
        transformer_dropout: float,
        transformer_nheads: int,
        transformer_dim_feedforward: int,
        transformer_enc_layers: int,
        conv_dim: int,
        mask_dim: int,
        norm: str | None = None,
        transformer_in_features: Sequence[str],
        common_stride: int,
    ) -> None:
        super().__init__()
        norm = norm or ""
        if norm not in ("", "GN"):
            raise ValueError(f"unknown norm {norm!r} of the pixel decoder; allowed: 'GN' and ''")
        unknown = sorted(set(transformer_in_features) - set(input_shape))
        if unknown:
            raise ValueError(f"the pixel decoder gets no map {unknown[0]!r}; there are {', '.join(input_shape)}")
        by_stride = sorted(input_shape, key=lambda name: input_shape[name][3])
        self.finest = by_stride[0]
        finest_channels, _, _, finest_stride = input_shape[self.finest]
        if finest_stride != common_stride:
            raise ValueError(f"common_stride {common_stride} is not that of the finest map, {finest_stride}")
        self.coarse_to_fine = [name for name in by_stride[:0:-1] if name in transformer_in_features]
        self.input_convs = nn.ModuleList(
            self._input_conv(input_shape[name][0], conv_dim) for name in self.coarse_to_fine
        )
        self.encoder = MSDeformAttnEncoder(
            transformer_enc_layers,
            conv_dim,
            len(self.coarse_to_fine),
            d_ffn=transformer_dim_feedforward,
            dropout=transformer_dropout,
            n_heads=transformer_nheads,
        )
        self.position_encoding = PositionEmbeddingSine(conv_dim // 2, normalize=True)
        self.lateral_convs = nn.ModuleList([ConvNorm(finest_channels, conv_dim, 1, norm)])
        self.output_convs = nn.ModuleList([ConvNorm(conv_dim, conv_dim, 3, norm, nn.ReLU())])
        self.mask_feature = nn.Conv2d(conv_dim, mask_dim, 1)
        nn.init.kaiming_uniform_(self.mask_feature.weight, a=1)
        nn.init.zeros_(self.mask_feature.bias)

    @staticmethod
    def _input_conv(in_channels: int, channels: int) -> nn.Sequential:
        convolution = nn.Conv2d(in_channels, channels, 1)
        nn.init.xavier_uniform_(convolution.weight)
        nn.init.zeros_(convolution.bias)
        return nn.Sequential(convolution, GroupNorm(NUM_GROUPS, channels))

    def forward_features(self, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Decode maps; never in half precision by autocast, which is too coarse for sampling locations.

        Args:
            features: per name a map (B, channels, h, w).

        Returns:
            The mask features (B, mask_dim, h, w) of the finest map's size, the coarsest map of the encoder, and all its
            maps (B, conv_dim, h_i, w_i), coarse to fine.
        """
        dtype = self.mask_feature.weight.dtype
        with without_autocast(features[self.finest].device):
            coarse = [
                convolution(features[name].to(dtype))
                for name, convolution in zip(self.coarse_to_fine, self.input_convs, strict=True)
            ]
            encoded = self.encoder(coarse, [self.position_encoding(x) for x in coarse])
            lateral = self.lateral_convs[0](features[self.finest].to(dtype))
            enlarged = resize(encoded[-1], lateral.shape[-2:])
            return self.mask_feature(self.output_convs[0](lateral + enlarged)), encoded[0], encoded
