"""Linear probe: batch norm and a 1×1 convolution (Oquab et al., "DINOv2", 2023, https://arxiv.org/abs/2304.07193).

deepest map → batch norm → dropout → 1×1 convolution → resizing → logits
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dinov3.eval.segmentation.models.heads.linear_head import linear_probe
from dinov3.eval.segmentation.models.utils.extent import resize
from nnunetv2.model.option_checks import check_dropout
from nnunetv2.model.segmentation_model import LastLayerModel


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
        self.head = nn.Sequential(*linear_probe(channels, num_classes, dropout))

    def decode(self, features: list[Tensor], output_size: Sequence[int]) -> Tensor:
        """Map features to logits (B, num_classes, *output_size)."""
        return resize(self.head(torch.cat(features, dim=1)), output_size)


create_segmentation_model = LinearSegmentationModel
