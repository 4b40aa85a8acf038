"""Mask2Former's transformer decoder (Cheng et al., 2022, https://arxiv.org/abs/2112.01527, section 3.2).

learned queries → layers of masked cross-attention, self-attention, feed-forward → a class and a mask per query
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinov3.eval.segmentation.models.utils.extent import resize
from dinov3.eval.segmentation.models.utils.position_encoding import PositionEmbeddingSine

NUM_FEATURE_LEVELS = 3


class ResidualLayer(nn.Module):
    """A residual branch with its norm after the sum, or before the branch.

    Args:
        d_model: channels.
        pre_norm: whether the norm comes before the branch.
    """

    def __init__(self, d_model: int, pre_norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.pre_norm = pre_norm

    def before(self, x: Tensor) -> Tensor:
        """The input of the branch."""
        return self.norm(x) if self.pre_norm else x

    def after(self, x: Tensor, change: Tensor) -> Tensor:
        """The output of the layer."""
        return x + change if self.pre_norm else self.norm(x + change)


class SelfAttentionLayer(ResidualLayer):
    """Self-attention among the queries.

    Args:
        d_model: channels.
        nhead: number of attention heads.
        pre_norm: see `ResidualLayer`.
    """

    def __init__(self, d_model: int, nhead: int, pre_norm: bool) -> None:
        super().__init__(d_model, pre_norm)
        self.self_attn = nn.MultiheadAttention(d_model, nhead, batch_first=True)
        _xavier(self.self_attn)

    def forward(self, queries: Tensor, query_position: Tensor) -> Tensor:
        """Map queries and their positions (B, Q, d_model) to (B, Q, d_model)."""
        x = self.before(queries)
        keys = x + query_position
        return self.after(queries, self.self_attn(keys, keys, x, need_weights=False)[0])


class CrossAttentionLayer(ResidualLayer):
    """Masked attention: the queries cross-attend to the pixels that their masks cover.

    Args:
        d_model: channels.
        nhead: number of attention heads.
        pre_norm: see `ResidualLayer`.
    """

    def __init__(self, d_model: int, nhead: int, pre_norm: bool) -> None:
        super().__init__(d_model, pre_norm)
        self.multihead_attn = nn.MultiheadAttention(d_model, nhead, batch_first=True)
        _xavier(self.multihead_attn)

    def forward(
        self, queries: Tensor, query_position: Tensor, pixels: Tensor, pixel_position: Tensor, masked: Tensor
    ) -> Tensor:
        """Cross-attend to a feature map.

        Args:
            queries: (B, Q, d_model).
            query_position: their position encodings, of the same shape.
            pixels: of the feature map, (B, n, d_model).
            pixel_position: their position encodings, (B, n, d_model).
            masked: True where a query does not attend, (B · heads, Q, n).

        Returns:
            (B, Q, d_model).
        """
        attended, _ = self.multihead_attn(
            self.before(queries) + query_position, pixels + pixel_position, pixels, attn_mask=masked, need_weights=False
        )
        return self.after(queries, attended)


class FFNLayer(ResidualLayer):
    """A feed-forward network.

    Args:
        d_model: channels.
        dim_feedforward: channels inside.
        pre_norm: see `ResidualLayer`.
    """

    def __init__(self, d_model: int, dim_feedforward: int, pre_norm: bool) -> None:
        super().__init__(d_model, pre_norm)
        self.linear1 = nn.Linear(d_model, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, d_model)
        _xavier(self.linear1)
        _xavier(self.linear2)

    def forward(self, queries: Tensor) -> Tensor:
        """Map (B, Q, d_model) to (B, Q, d_model)."""
        return self.after(queries, self.linear2(F.relu(self.linear1(self.before(queries)))))


class MLP(nn.Module):
    """Linear layers with ReLU in between.

    Args:
        input_dim: channels of the input.
        hidden_dim: channels in between.
        output_dim: channels of the result.
        num_layers: number of linear layers.
    """

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int) -> None:
        super().__init__()
        widths = [input_dim, *[hidden_dim] * (num_layers - 1), output_dim]
        self.layers = nn.ModuleList(nn.Linear(widths[i], widths[i + 1]) for i in range(num_layers))

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, input_dim) to (…, output_dim)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class MultiScaleMaskedTransformerDecoder(nn.Module):
    """The transformer decoder.

    Args:
        in_channels: channels of the maps.
        mask_classification: must be true: every query gets a class.
        num_classes: number of classes; one more is "no object".
        hidden_dim: channels of the queries.
        num_queries: number of queries.
        nheads: number of attention heads.
        dim_feedforward: channels inside of the feed-forward networks.
        dec_layers: number of layers.
        pre_norm: whether norms come before the attention instead of behind it.
        mask_dim: channels of the mask features.
        enforce_input_project: project the maps even if they have `hidden_dim` channels.

    Raises:
        ValueError: `mask_classification` is false.
    """

    def __init__(
        self,
        in_channels: int,
        mask_classification: bool = True,
        *,
        num_classes: int,
        hidden_dim: int,
        num_queries: int,
        nheads: int,
        dim_feedforward: int,
        dec_layers: int,
        pre_norm: bool,
        mask_dim: int,
        enforce_input_project: bool,
    ) -> None:
        super().__init__()
        if not mask_classification:
            raise ValueError("mask_classification must be true: queries without classes are not supported")
        self.num_heads = nheads
        self.num_layers = dec_layers
        self.num_queries = num_queries
        self.position_encoding = PositionEmbeddingSine(hidden_dim // 2, normalize=True)
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(hidden_dim, nheads, pre_norm) for _ in range(dec_layers)
        )
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(hidden_dim, nheads, pre_norm) for _ in range(dec_layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FFNLayer(hidden_dim, dim_feedforward, pre_norm) for _ in range(dec_layers)
        )
        self.post_norm = nn.LayerNorm(hidden_dim)
        self.query_feat = nn.Embedding(num_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.level_embed = nn.Embedding(NUM_FEATURE_LEVELS, hidden_dim)
        projects = enforce_input_project or in_channels != hidden_dim
        self.input_proj = nn.ModuleList(
            _projection(in_channels, hidden_dim) if projects else nn.Identity() for _ in range(NUM_FEATURE_LEVELS)
        )
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, 3)

    def forward(self, x: Sequence[Tensor], mask_features: Tensor, mask: None = None) -> dict[str, Tensor | list]:
        """Decode.

        Args:
            x: three maps (B, in_channels, h_i, w_i), coarse to fine.
            mask_features: (B, mask_dim, h, w).
            mask: not read; padding is not masked.

        Returns:
            `pred_logits` (B, Q, num_classes + 1), the last class being "no object"; `pred_masks`, logits (B, Q, h, w);
            `aux_outputs`, a list of the same two for the initial queries and for every layer but the last.
        """
        sizes = [level.shape[-2:] for level in x]
        positions = [self.position_encoding(level).flatten(2).transpose(1, 2) for level in x]
        pixels = [
            project(level).flatten(2).transpose(1, 2) + embedding
            for project, level, embedding in zip(self.input_proj, x, self.level_embed.weight, strict=True)
        ]
        query_position = self.query_embed.weight.expand(len(mask_features), -1, -1)
        queries = self.query_feat.weight.expand(len(mask_features), -1, -1)
        predictions = [self._predict(queries, mask_features)]
        layers = zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
            strict=True,
        )
        for i, (cross_attention, self_attention, feed_forward) in enumerate(layers):
            level = i % NUM_FEATURE_LEVELS
            masked = self._attention_mask(predictions[-1]["pred_masks"], sizes[level])
            queries = cross_attention(queries, query_position, pixels[level], positions[level], masked)
            queries = feed_forward(self_attention(queries, query_position))
            predictions.append(self._predict(queries, mask_features))
        return {**predictions[-1], "aux_outputs": predictions[:-1]}

    def _predict(self, queries: Tensor, mask_features: Tensor) -> dict[str, Tensor]:
        queries = self.post_norm(queries)
        masks = torch.einsum("bqc,bchw->bqhw", self.mask_embed(queries), mask_features)
        return {"pred_logits": self.class_embed(queries), "pred_masks": masks}

    @torch.no_grad()
    def _attention_mask(self, masks: Tensor, size: Sequence[int]) -> Tensor:
        # True where the mask does not cover the pixel. A query whose mask covers none attends to all: a softmax over
        # nothing would be NaN.
        covered = resize(masks, size).flatten(2).sigmoid() >= 0.5
        masked = ~covered & covered.any(-1, keepdim=True)
        return masked.repeat_interleave(self.num_heads, dim=0)


def _projection(in_channels: int, channels: int) -> nn.Conv2d:
    projection = nn.Conv2d(in_channels, channels, 1)
    nn.init.kaiming_uniform_(projection.weight, a=1)
    nn.init.zeros_(projection.bias)
    return projection


def _xavier(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
