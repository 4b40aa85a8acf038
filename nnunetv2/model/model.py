"""The UperNet model under the project's first names."""

from typing import Any

from nnunetv2.model.model_upernet import UperNetSegmentationModel as ViTSegmentationModel
from nnunetv2.model.model_upernet import create_segmentation_model as create_upernet

__all__ = ["ViTSegmentationModel", "create_segmentation_model"]


def create_segmentation_model(
    backbone_name: str = "dinov3",
    backbone_size: str = "large",
    num_classes: int = 1,
    *backbone_arguments: Any,
    head_type: str = "upernet",
    use_progressive_upsample: bool = True,
    decoder_dropout: float = 0.1,
    **options: Any,
) -> ViTSegmentationModel:
    """Create UperNet on a ViT (see `nnunetv2.model.model_upernet`).

    Raises:
        ValueError: `head_type` is not `upernet`; the other decoders have modules of their own.
    """
    if head_type != "upernet":
        raise ValueError(f"unknown head_type {head_type!r}; allowed: upernet")
    return create_upernet(
        backbone_name,
        backbone_size,
        num_classes,
        *backbone_arguments,
        use_progressive_upsample=use_progressive_upsample,
        decoder_dropout=decoder_dropout,
        **options,
    )
