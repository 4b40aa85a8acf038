"""Queries beside the tokens of a plain transformer, and what is predicted from them (Kerssies et al., "Your ViT is
Secretly an Image Segmentation Model" (EoMT), 2025, https://arxiv.org/abs/2503.19108).

tokens, queries → blocks; before each block and behind the last: norm → per query a class and a mask
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from nnunetv2.model.masked_attention import attention_mask, draw_masked_queries

Block = Callable[[Tensor, Tensor | None], Tensor]


class Prediction(NamedTuple):
    """What one layer says.

    Attributes:
        masks: logits of the masks, (B, Q, h, w).
        classes: logits of the classes, (B, Q, num_classes + 1), "no object" last.
    """

    masks: Tensor
    classes: Tensor


class UpscaleBlock(nn.Module):
    """Doubling of a map: (B, C, h, w) → (B, C, 2 h, 2 w).

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = LayerNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Double (B, C, h, w)."""
        return self.norm(self.conv2(F.gelu(self._double(x))))

    def _double(self, x: Tensor) -> Tensor:
        # What `conv1` does, as a matrix product: tokens come channels last, where a CPU takes five times as long for
        # the backward pass of the transposed convolution.
        weight = self.conv1.weight.permute(2, 3, 1, 0).flatten(0, 2)
        cells = F.linear(x.permute(0, 2, 3, 1), weight, self.conv1.bias.repeat(4))  # (B, h, w, 2 · 2 · C)
        rows = cells.unflatten(-1, (2, 2, -1)).transpose(2, 3)  # (B, h, 2, w, 2, C)
        return rows.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def num_upscale_blocks(patch_size: int) -> int:
    """How many doublings take the grid of patches to a stride of about 4 pixels: two for patches of 14 and of 16."""
    return max(1, round(math.log2(patch_size)) - 2)


class QueryDecoder(nn.Module):
    """Learned queries that run through transformer blocks with an image's tokens.

    Submodules have the names of the published weights of EoMT and PMT.

    Args:
        embed_dim: channels of tokens and queries.
        num_classes: number of classes; one more is "no object".
        num_queries: number of queries, Q.
        num_blocks: number of blocks that the queries run through.
        patch_size: side of the patches in pixels.

    Attributes:
        masked_attention: whether queries attend only to the patches that their masks cover; as `train()` says, true in
            training and false in evaluation mode, unless it is set afterwards.
        mask_probabilities: per block, how likely the mask of a query applies, if masks do at all.
    """

    def __init__(self, embed_dim: int, num_classes: int, num_queries: int, num_blocks: int, patch_size: int) -> None:
        super().__init__()
        self.masked_attention = True
        self.mask_probabilities = [1.0] * num_blocks
        self.q = nn.Embedding(num_queries, embed_dim)
        self.class_head = nn.Linear(embed_dim, num_classes + 1)
        self.mask_head = nn.Sequential(
            nn.Linear(embed_dim, embed_dim),
            nn.GELU(),
            nn.Linear(embed_dim, embed_dim),
            nn.GELU(),
            nn.Linear(embed_dim, embed_dim),
        )
        self.upscale = nn.Sequential(*(UpscaleBlock(embed_dim) for _ in range(num_upscale_blocks(patch_size))))

    def train(self, mode: bool = True) -> "QueryDecoder":
        """Set the training mode, and with it `masked_attention`."""
        super().train(mode)
        self.masked_attention = mode
        return self

    def decode(
        self,
        tokens: Tensor,
        grid: tuple[int, int],
        norm: nn.Module,
        blocks: Sequence[Block],
        first_layer: int = 0,
    ) -> list[Prediction]:
        """Run queries and tokens through blocks, and predict.

        Args:
            tokens: (B, prefix + h·w, embed_dim): class and register tokens, then patches.
            grid: (h, w).
            norm: applied to all tokens before a prediction.
            blocks: map tokens (B, prefix + Q + h·w, embed_dim), the queries being between the other two, and the
                attention's mask (see `attention_mask`) or None.
            first_layer: predictions before the block of this number are left out where no mask is made of them.

        Returns:
            Predictions before the blocks, in order, and behind the last one.
        """
        prefix, patches = tokens.split([tokens.shape[1] - grid[0] * grid[1], grid[0] * grid[1]], dim=1)
        tokens = torch.cat([prefix, self.q.weight.expand(len(tokens), -1, -1).to(tokens.dtype), patches], dim=1)
        predictions = []
        for number, block in enumerate(blocks):
            probability = self.mask_probabilities[number] if self.masked_attention else 0.0
            mask = None
            if number >= first_layer or probability > 0:
                predictions.append(self.predict(norm(tokens), grid))
            if probability > 0:
                masks = predictions[-1].masks
                mask = attention_mask(masks, grid, prefix.shape[1], draw_masked_queries(masks, probability))
            tokens = block(tokens, mask)
        return [*predictions, self.predict(norm(tokens), grid)]

    def predict(self, tokens: Tensor, grid: tuple[int, int]) -> Prediction:
        """Predict from normalised tokens (B, prefix + Q + h·w, embed_dim): masks at 2ⁿ times the grid (h, w)."""
        num_queries, num_patches = self.q.num_embeddings, grid[0] * grid[1]
        _, queries, patches = tokens.split(
            [tokens.shape[1] - num_queries - num_patches, num_queries, num_patches], dim=1
        )
        maps = self.upscale(patches.transpose(1, 2).unflatten(-1, grid))
        masks = torch.einsum("bqc,bchw->bqhw", self.mask_head(queries), maps)
        return Prediction(masks, self.class_head(queries))
