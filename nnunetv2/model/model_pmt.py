"""PMT, the plain mask transformer, on a ViT (Cavagnero et al., 2026, https://arxiv.org/abs/2603.25398).

all tokens of four blocks → fused → queries and tokens through plain blocks → per query a class and a mask at stride 4 →
dense logits
"""

from typing import Any

from timm.layers import RotaryEmbeddingDinoV3
from torch import Tensor

from dinov3.models.features import get_vit_tokens
from dinov3.models.timm_dinov3 import is_dinov3
from nnunetv2.model.annealed_masks import AnnealedMaskModel
from nnunetv2.model.mask_classification import resolve_options
from nnunetv2.model.option_checks import AUTO, check_levels
from nnunetv2.model.plain_mask_decoder import PlainMaskDecoder
from nnunetv2.model.query_prediction import Prediction

__all__ = ["PMTSegmentationModel", "PlainMaskDecoder", "create_segmentation_model", "resolve_options"]


class PMTSegmentationModel(AnnealedMaskModel):
    """PMT on any ViT of the registry; made for a ViT that is frozen.

    Args:
        backbone_name: a family of the registry, or `timm:<name>`.
        backbone_size: a size of the family.
        num_classes: number of classes, or of regions.
        backbone_arguments: the next ones of `ViTSegmentationModel`.
        num_queries: number of queries.
        num_blocks: number of the decoder's blocks.
        mlp_dim: channels inside of their feed-forward networks; `auto`: as many as the ViT has.
        regions: whether the classes are regions, which may overlap.
        backbone_options: see `ViTSegmentationModel`; there must be four feature layers.

    Attributes:
        rope: DINOv3's rotary encoding for the decoder, where the ViT has none; otherwise None.

    Raises:
        ValueError: fewer queries than classes, a number below 1, or channels that rotary positions cannot share.
    """

    def __init__(
        self,
        backbone_name: str = "dinov3",
        backbone_size: str = "large",
        num_classes: int = 1,
        *backbone_arguments: Any,
        num_queries: int = 100,
        num_blocks: int = 6,
        mlp_dim: int | str = AUTO,
        regions: bool = False,
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
        check_levels("PMT", self.feature_indices)
        _check_numbers(num_blocks, mlp_dim)
        # in most ViTs that of `attn`, but not in all
        num_heads = next(part.num_heads for part in self.backbone.blocks[0].modules() if hasattr(part, "num_heads"))
        self.rope = None if is_dinov3(self.backbone) else _create_rope(self.embed_dim, num_heads)
        self.decoder = PlainMaskDecoder(
            self.embed_dim,
            num_heads,
            num_classes,
            num_queries,
            num_blocks,
            self.embed_dim if mlp_dim == AUTO else mlp_dim,
            patch_size=self.patch_size,
        )

    @property
    def resolved_options(self) -> dict[str, int]:
        """The options that may be `auto`, with what they stand for: plans hold these."""
        return {"mlp_dim": self.decoder.blocks[0].mlp.up_proj.out_features}

    def predict_layers(self, x: Tensor, first_layer: int) -> list[Prediction]:
        """Predict from normalised images (B, C, H, W), of the layers from `first_layer` on."""
        grid = self.grid_of(x)
        rope = self.backbone.rope if self.rope is None else self.rope
        sines, cosines = rope.get_embed(grid).chunk(2, dim=-1)
        return self.decoder.predict_layers(
            get_vit_tokens(self.backbone, x, self.feature_indices),
            grid,
            self.backbone.num_prefix_tokens,
            (cosines, sines),
            first_layer,
        )


def _check_numbers(num_blocks: int, mlp_dim: int | str) -> None:
    if num_blocks < 1:
        raise ValueError(f"num_blocks must be at least 1, found {num_blocks}")
    if mlp_dim != AUTO and (isinstance(mlp_dim, str) or mlp_dim < 1):
        raise ValueError(f"mlp_dim must be auto or at least 1, found {mlp_dim!r}")


def _create_rope(embed_dim: int, num_heads: int) -> RotaryEmbeddingDinoV3:
    channels = embed_dim // num_heads
    if channels % 4:
        raise ValueError(f"PMT's rotary positions need heads of 4, 8, 12, … channels, this ViT's have {channels}")
    return RotaryEmbeddingDinoV3(channels)


create_segmentation_model = PMTSegmentationModel
