"""Mask2Former on a ViT-Adapter (Cheng et al., 2022, https://arxiv.org/abs/2112.01527; Chen et al., 2023, ViT-Adapter,
https://arxiv.org/abs/2205.08534).

image, tokens of four blocks → adapter: maps at strides 4 to 32 → pixel decoder → transformer decoder: per query a class
and a mask at stride 4 → dense logits
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dinov3.eval.segmentation.m2f_targets import queries_to_logits
from dinov3.eval.segmentation.models.backbone.vit_adapter import COARSEST_STRIDE, ViTAdapter, vit_tokens
from dinov3.eval.segmentation.models.heads.mask2former_head import COMMON_STRIDE, FEATURES, Mask2FormerHead
from dinov3.eval.segmentation.models.utils.extent import crop_output, pad_to_multiple
from dinov3.eval.segmentation.precision import autocast_for
from dinov3.models.feature_layers import BackboneLayersSet, layer_indices
from nnunetv2.model.option_checks import check_levels
from nnunetv2.model.segmentation_model import ViTSegmentationModel

Queries = dict[str, Tensor | list[dict[str, Tensor]]]


class M2FSegmentationModel(ViTSegmentationModel):
    """Mask2Former on any ViT of the registry.

    In training mode it returns queries, which the loss of mask classification compares with masks; in evaluation mode
    dense logits, as nnU-Net expects them.

    Args:
        backbone_name: a family of the registry, or `timm:<name>`.
        backbone_size: a size of the family.
        num_classes: number of classes, or of regions.
        backbone_arguments: the next ones of `ViTSegmentationModel`.
        hidden_dim: channels of the head; a multiple of 32.
        num_queries: number of queries.
        regions: whether the classes are regions, which may overlap.
        dim_feedforward: channels inside of the head's feed-forward networks.
        enc_layers: layers of the pixel decoder.
        dec_layers: layers of the transformer decoder.
        backbone_options: see `ViTSegmentationModel`. `out_layers` may name a `BackboneLayersSet` as well.

    Raises:
        ValueError: fewer queries than classes (every class of an image needs one), or an impossible width or layer.
    """

    def __init__(
        self,
        backbone_name: str = "dinov3",
        backbone_size: str = "large",
        num_classes: int = 1,
        *backbone_arguments: Any,
        hidden_dim: int = 2048,
        num_queries: int = 100,
        regions: bool = False,
        dim_feedforward: int = 4096,
        enc_layers: int = 6,
        dec_layers: int = 9,
        **backbone_options: Any,
    ) -> None:
        if num_queries < num_classes:
            raise ValueError(f"num_queries must be at least the number of classes ({num_classes}), found {num_queries}")
        super().__init__(backbone_name, backbone_size, num_classes, *backbone_arguments, **backbone_options)
        check_levels("Mask2Former's adapter", self.feature_indices)
        self.regions = regions
        self.adapter = ViTAdapter(self.embed_dim, self.input_channels)
        self.head = Mask2FormerHead(
            dict.fromkeys(FEATURES, (self.embed_dim, 0, 0, COMMON_STRIDE)),
            hidden_dim,
            num_classes,
            num_queries=num_queries,
            dim_feedforward=dim_feedforward,
            enc_layers=enc_layers,
            dec_layers=dec_layers,
        )

    @classmethod
    def choose_layers(cls, depth: int, out_layers: Sequence[int] | str | None = None) -> list[int]:
        """Return the indices of the feature layers that the adapter reads; by default those of the reference.

        Raises:
            ValueError: there is no such set, or no such block.
        """
        return layer_indices(BackboneLayersSet.FOUR_EVEN_INTERVALS if out_layers is None else out_layers, depth)

    def forward(self, x: Tensor) -> Queries | Tensor:
        """Segment images.

        Args:
            x: images as nnU-Net normalises them, (B, input_channels, H, W).

        Returns:
            In training mode queries (see `forward_queries`); in evaluation mode logits, (B, num_classes, H, W),
            float32, whose softmax (for regions: sigmoid) gives the probabilities (see `queries_to_logits`).
        """
        queries = self.forward_queries(x)
        return queries if self.training else self.dense_logits(queries, x.shape[-2:])

    def forward_queries(self, x: Tensor) -> Queries:
        """Return `pred_masks` (B, Q, ⌈H/4⌉, ⌈W/4⌉), `pred_logits` (B, Q, num_classes + 1) and `aux_outputs`, a list.

        Args:
            x: images, (B, input_channels, H, W).

        Raises:
            ValueError: the input has another shape than that.
        """
        self.check_input(x)
        with autocast_for(x.device, self.precision):
            padded = pad_to_multiple((x - self.input_mean) / self.input_std, COARSEST_STRIDE)
            queries = self.head(self.adapter.adapt(padded, self.encode(padded)))
        return crop_output(queries, padded.shape[-2:], x.shape[-2:])

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the patch tokens of the feature layers for normalised images (B, C, H, W), sides multiples of 32."""
        return vit_tokens(self.backbone, x, self.feature_indices)

    def dense_logits(self, queries: Queries, size: Sequence[int]) -> Tensor:
        """Turn queries into logits (B, num_classes, *size)."""
        # image by image: all masks of a batch at full size would take gigabytes
        images = zip(queries["pred_masks"].split(1), queries["pred_logits"].split(1), strict=True)
        return torch.cat([queries_to_logits(masks, classes, size, self.regions) for masks, classes in images])


create_segmentation_model = M2FSegmentationModel


def resolve_options(options: dict[str, Any], batch_size: int, regions: bool) -> dict[str, Any]:
    """Note in the plans of an experiment whether its classes are regions.

    Args:
        options: the decoder's keywords.
        batch_size: images per batch.
        regions: whether the data set declares regions.
    """
    return {**options, "regions": regions}
