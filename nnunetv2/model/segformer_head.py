"""The all-MLP decoder of SegFormer (Xie et al., "SegFormer", 2021, https://arxiv.org/abs/2105.15203, section 3.2).

maps → a linear layer each → concatenated, deepest first → 1×1 convolution, batch norm, ReLU, dropout → classes

Names in the state dict are those of Hugging Face's `SegformerDecodeHead` (transformers 5.23), so that checkpoints which
hold them load; those of earlier releases are renamed on loading.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LinearProjection(nn.Module):
    """The same linear layer at every pixel: (B, C_in, h, w) → (B, C_out, h, w)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Project the channels of (B, C_in, h, w)."""
        tokens = x.flatten(2).transpose(1, 2)
        return self.proj(tokens).transpose(1, 2).unflatten(2, x.shape[-2:])


class SegFormerHead(nn.Module):
    """SegFormer's decoder for maps of one size, as a plain ViT gives them.

    Args:
        in_channels: channels of each map.
        hidden_size: channels of the decoder.
        out_channels: number of classes, or channels of the features where a decoder follows.
        dropout: probability that an activation before the classifier is dropped.
    """

    def __init__(self, in_channels: Sequence[int], hidden_size: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.linear_projections = nn.ModuleList(LinearProjection(channels, hidden_size) for channels in in_channels)
        self.linear_fuse = nn.Conv2d(len(in_channels) * hidden_size, hidden_size, 1, bias=False)
        self.batch_norm = nn.BatchNorm2d(hidden_size)
        self.activation = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(hidden_size, out_channels, 1)
        self.register_load_state_dict_pre_hook(_before_loading)

    @staticmethod
    def rename_former_names(state: dict[str, Tensor], prefix: str) -> None:
        """Give a state dict today's names, in place: up to release 5.0, transformers had `linear_c` in them.

        Args:
            state: names to tensors, of a network that holds a `SegFormerHead`.
            prefix: what the names of this head begin with, such as `decode_head.`.
        """
        former, current = f"{prefix}linear_c.", f"{prefix}linear_projections."
        for name in [name for name in state if name.startswith(former)]:
            state[current + name.removeprefix(former)] = state.pop(name)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map features (B, in_channels[i], h, w), shallow to deep, to (B, out_channels, h, w)."""
        return self.classify(self.fuse(features))

    def fuse(self, features: Sequence[Tensor]) -> Tensor:
        """Map features (B, in_channels[i], h, w), shallow to deep, to (B, hidden_size, h, w) by linear layers alone."""
        projected = [projection(x) for projection, x in zip(self.linear_projections, features, strict=True)]
        return self.linear_fuse(torch.cat(projected[::-1], dim=1))

    def classify(self, fused: Tensor) -> Tensor:
        """Normalise, activate and classify (B, hidden_size, h, w): (B, out_channels, h, w)."""
        return self.classifier(self.dropout(self.activation(self.batch_norm(fused))))


def _before_loading(module: SegFormerHead, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    module.rename_former_names(state, prefix)
