"""PMT's decoder: plain transformer blocks on the tokens of a ViT (Cavagnero et al., "PMT: Plain Mask Transformer",
2026, https://arxiv.org/abs/2603.25398).

tokens of four blocks → batch norm, MLP, scale each → sum → queries and tokens through blocks → per query a class and a
mask
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn

from dinov3.eval.segmentation.models.utils.batch_norm import BatchNorm2d
from nnunetv2.model.query_prediction import Prediction, QueryDecoder

Rope = tuple[Tensor, Tensor]


class LayerScale(nn.Module):
    """A learned factor per channel, 1 at the start.

    Args:
        channels: number of channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Scale (…, channels)."""
        return x * self.lambda1


class Attention(nn.Module):
    """Self-attention with rotary positions; keys have no bias, which the softmax over them would cancel.

    Args:
        embed_dim: channels.
        num_heads: number of heads.
    """

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.o_proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor, rope: Tensor, mask: Tensor | None) -> Tensor:
        """Map tokens (B, N, embed_dim) to the same shape.

        Args:
            x: the tokens.
            rope: sines and cosines, (N, 2 · channels of a head).
            mask: added to the scores, (B, 1, N, N).
        """
        query, key, value = (
            project(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = (apply_rot_embed_cat(part, rope, half=True).type_as(value) for part in (query, key))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.o_proj(attended.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with GELU in between.

    Args:
        channels: of input and result.
        hidden: channels in between.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(channels, hidden)
        self.down_proj = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, channels) to the same shape."""
        return self.down_proj(F.gelu(self.up_proj(x)))


class PlainBlock(nn.Module):
    """A transformer block of DINOv3's kind: norms before attention and feed-forward network, layer scale behind.

    Args:
        embed_dim: channels.
        num_heads: attention heads.
        mlp_dim: channels inside of the feed-forward network.
    """

    def __init__(self, embed_dim: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim)
        self.attention = Attention(embed_dim, num_heads)
        self.layer_scale1 = LayerScale(embed_dim)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.mlp = Mlp(embed_dim, mlp_dim)
        self.layer_scale2 = LayerScale(embed_dim)

    def forward(self, x: Tensor, mask: Tensor | None, rope: Tensor) -> Tensor:
        """Map tokens (B, N, embed_dim) to the same shape (see `Attention`)."""
        x = x + self.layer_scale1(self.attention(self.norm1(x), rope, mask))
        return x + self.layer_scale2(self.mlp(self.norm2(x)))


class PlainMaskDecoder(QueryDecoder):
    """PMT's decoder.

    Args:
        embed_dim: channels of the ViT's tokens and of everything inside.
        num_heads: attention heads.
        num_classes: number of classes; one more is "no object".
        num_queries: number of queries, Q.
        num_blocks: number of blocks.
        mlp_dim: channels inside of the blocks' feed-forward networks.
        num_levels: number of feature layers.
        patch_size: side of the ViT's patches in pixels.

    Attributes:
        masked_attention: see `QueryDecoder`.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_classes: int,
        num_queries: int,
        num_blocks: int,
        mlp_dim: int,
        num_levels: int = 4,
        patch_size: int = 16,
    ) -> None:
        super().__init__(embed_dim, num_classes, num_queries, num_blocks, patch_size)
        self.bn = nn.ModuleList(BatchNorm2d(embed_dim) for _ in range(num_levels))
        self.lateral_projections = nn.ModuleList(
            nn.Sequential(nn.Linear(embed_dim, embed_dim // 2), nn.GELU(), nn.Linear(embed_dim // 2, embed_dim))
            for _ in range(num_levels)
        )
        self.scalers = nn.ParameterList(nn.Parameter(torch.ones(embed_dim)) for _ in range(num_levels))
        self.blocks = nn.ModuleList(PlainBlock(embed_dim, num_heads, mlp_dim) for _ in range(num_blocks))
        self.decoder_norm = nn.LayerNorm(embed_dim)

    def forward(
        self, features: Sequence[Tensor], grid: tuple[int, int], num_prefix_tokens: int, rope: Rope
    ) -> list[Prediction]:
        """Predict with all layers, or where `masked_attention` is off with the last alone.

        Args:
            features: tokens of the feature layers after the ViT's final norm, (B, prefix + h·w, embed_dim) each: class
                and register tokens, then patches.
            grid: (h, w).
            num_prefix_tokens: number of class and register tokens.
            rope: cosines and sines of the patches, (h·w, channels of a head) each.

        Returns:
            Pairs of mask logits (B, Q, 4 h, 4 w), for patches of 16, and class logits (B, Q, num_classes + 1).
        """
        first_layer = 0 if self.masked_attention else len(self.blocks)
        return self.predict_layers(features, grid, num_prefix_tokens, rope, first_layer)

    def predict_layers(
        self,
        features: Sequence[Tensor],
        grid: tuple[int, int],
        num_prefix_tokens: int,
        rope: Rope,
        first_layer: int = 0,
    ) -> list[Prediction]:
        """Predict as `forward` does, but leave out only the layers before `first_layer` (see `QueryDecoder`)."""
        positions = self._positions(num_prefix_tokens, rope)
        blocks = [partial(block, rope=positions) for block in self.blocks]
        return self.decode(self._fuse(features), grid, self.decoder_norm, blocks, first_layer)

    def _fuse(self, features: Sequence[Tensor]) -> Tensor:
        fused = torch.zeros_like(features[0])
        levels = zip(features, self.bn, self.lateral_projections, self.scalers, strict=True)
        for tokens, batch_norm, project, scale in levels:
            tokens = batch_norm(tokens.transpose(1, 2).unsqueeze(-1)).squeeze(-1).transpose(1, 2)
            fused = fused + scale * (tokens + project(tokens))
        return fused

    def _positions(self, num_prefix_tokens: int, rope: Rope) -> Tensor:
        """Sines and cosines of all tokens, (N, 2 · channels of a head): those that are no patches are not rotated."""
        cosines, sines = rope
        unrotated = cosines.new_zeros(num_prefix_tokens + self.q.num_embeddings, cosines.shape[-1])
        return torch.cat([torch.cat([unrotated, sines]), torch.cat([unrotated + 1, cosines])], dim=-1)

    def load_published_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load weights under the published names, strictly.

        Args:
            state: names `decoder.…` and `bn.…`, with or without `network.` before them, to tensors. The probabilities
                of the masks, which are no weights, are left out.

        Raises:
            RuntimeError: a tensor is missing, is not known, or has another shape.
        """
        names = {name: name.removeprefix("network.").removeprefix("decoder.") for name in state}
        self.load_state_dict({own: state[name] for name, own in names.items() if own != "attn_mask_probs"})
