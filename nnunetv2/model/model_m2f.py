"""Mask2Former on a ViT-Adapter (Cheng et al., 2022, https://arxiv.org/abs/2112.01527; Chen et al., 2023, ViT-Adapter,
https://arxiv.org/abs/2205.08534).

image, tokens of four blocks → adapter: maps at strides 4 to 32 → pixel decoder → transformer decoder: per query a class
and a mask at stride 4 → dense logits
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from dinov3.eval.segmentation.models.backbone.vit_adapter import COARSEST_STRIDE, ViTAdapter, vit_tokens
from dinov3.eval.segmentation.models.heads.mask2former_head import COMMON_STRIDE, FEATURES, Mask2FormerHead
from dinov3.models.feature_layers import BackboneLayersSet, layer_indices
from nnunetv2.model.mask_classification import MaskClassificationModel, Queries, resolve_options
from nnunetv2.model.option_checks import check_levels

__all__ = ["M2FSegmentationModel", "Queries", "create_segmentation_model", "resolve_options"]


class M2FSegmentationModel(MaskClassificationModel):
    """Mask2Former on any ViT of the registry.

    The masks of its attention always apply, in evaluation mode too: they are not annealed.

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

    PADDING: ClassVar[str] = "replicate"

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
        super().__init__(
            backbone_name,
            backbone_size,
            num_classes,
            *backbone_arguments,
            num_queries=num_queries,
            regions=regions,
            **backbone_options,
        )
        check_levels("Mask2Former's adapter", self.feature_indices)
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

    @property
    def padding_multiple(self) -> int:
        """Images are padded to multiples of the adapter's coarsest stride, whatever the patch size."""
        return COARSEST_STRIDE

    def predict_queries(self, x: Tensor) -> Queries:
        """Map normalised images (B, C, H, W), sides multiples of 32, to queries with masks (B, Q, H / 4, W / 4)."""
        return self.head(self.adapter.adapt(x, self.encode(x)))

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the patch tokens of the feature layers for normalised images (B, C, H, W), sides multiples of 32."""
        return vit_tokens(self.backbone, x, self.feature_indices)


create_segmentation_model = M2FSegmentationModel
