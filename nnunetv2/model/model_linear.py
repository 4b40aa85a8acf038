"""Linear probe: batch norm and a 1×1 convolution (Oquab et al., "DINOv2", 2023, https://arxiv.org/abs/2304.07193).

deepest map → batch norm → dropout → 1×1 convolution → resizing → logits
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2.model.segmentation_model import LastLayerModel, check_dropout
from nnunetv2.model.upsample import resize


class LinearSegmentationModel(LastLayerModel):
    """A linear classifier of every patch.

    Args:
        backbone_name: a family of the registry, or `timm:<name>`.
        backbone_size: a size of the family.
        num_classes: number of classes.
        backbone_arguments: the next ones of `ViTSegmentationModel`.
        dropout: probability that a channel is dropped, in [0, 1).
        backbone_options: see `ViTSegmentationModel`. With several `out_layers` their maps are concatenated; by
            default only the last block's is read.
    """

    def __init__(
        self,
        backbone_name: str = "dinov3",
        backbone_size: str = "large",
        num_classes: int = 1,
        *backbone_arguments: Any,
        dropout: float = 0.1,
        **backbone_options: Any,
    ) -> None:
        super().__init__(backbone_name, backbone_size, num_classes, *backbone_arguments, **backbone_options)
        check_dropout("dropout", dropout)
        channels = len(self.feature_indices) * self.embed_dim
        self.head = nn.Sequential(nn.BatchNorm2d(channels), nn.Dropout2d(dropout), nn.Conv2d(channels, num_classes, 1))
        nn.init.normal_(self.head[-1].weight, std=0.01)
        nn.init.zeros_(self.head[-1].bias)

    def decode(self, features: list[Tensor], output_size: Sequence[int]) -> Tensor:
        """Map features to logits (B, num_classes, *output_size)."""
        return resize(self.head(torch.cat(features, dim=1)), output_size)


create_segmentation_model = LinearSegmentationModel
