"""DPT on a ViT (Ranftl et al., "Vision Transformers for Dense Prediction", 2021, https://arxiv.org/abs/2103.13413).

tokens of four blocks, class token read out → maps at 4, 2, 1 and 1/2 times the grid → fused from the deepest → logits
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2.model.backbone import get_vit_features
from nnunetv2.model.dpt_neck import DPTNeck
from nnunetv2.model.option_checks import check_dropout, check_levels, check_one_of
from nnunetv2.model.segmentation_model import ViTSegmentationModel
from nnunetv2.model.upsample import resize

READOUT_TYPES = ("project", "add", "ignore")
# Below this number of images in a batch, `auto` takes no batch norm: its statistics would be too noisy.
MIN_BATCH_SIZE_FOR_BATCH_NORM = 4


class DPTHead(nn.Module):
    """Classifier of the fused map: (B, C, h, w) → (B, num_classes, h, w).

    Args:
        channels: C.
        num_classes: number of classes.
        dropout: probability that an activation before the classifier is dropped.
    """

    def __init__(self, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        # names in the state dict are those of Hugging Face's `DPTSemanticSegmentationHead` (transformers 5.23)
        self.head = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(channels, num_classes, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Classify (B, C, h, w)."""
        return self.head(x)


class DPTSegmentationModel(ViTSegmentationModel):
    """DPT on a ViT.

    Args:
        backbone_name: a family of the registry, or `timm:<name>`.
        backbone_size: a size of the family.
        num_classes: number of classes.
        backbone_arguments: the next ones of `ViTSegmentationModel`.
        fusion_hidden_size: channels of the fusion blocks and of the head.
        readout_type: what the class token does: `project` (concatenated with every patch and projected), `add`, or
            `ignore`.
        use_batch_norm_in_fusion_residual: batch norm in the fusion blocks. In a configuration also `auto`: where there
            are at least four images in a batch.
        decoder_dropout: probability that an activation before the classifier is dropped, in [0, 1).
        backbone_options: see `ViTSegmentationModel`; there must be four feature layers.
    """

    def __init__(
        self,
        backbone_name: str = "dinov3",
        backbone_size: str = "large",
        num_classes: int = 1,
        *backbone_arguments: Any,
        fusion_hidden_size: int = 256,
        readout_type: str = "project",
        use_batch_norm_in_fusion_residual: bool = True,
        decoder_dropout: float = 0.1,
        **backbone_options: Any,
    ) -> None:
        super().__init__(backbone_name, backbone_size, num_classes, *backbone_arguments, **backbone_options)
        check_levels("DPT", self.feature_indices)
        check_one_of("readout_type", readout_type, READOUT_TYPES)
        check_dropout("decoder_dropout", decoder_dropout)
        if fusion_hidden_size < 1:
            raise ValueError(f"fusion_hidden_size must be at least 1, found {fusion_hidden_size}")
        if not isinstance(use_batch_norm_in_fusion_residual, bool):
            raise ValueError(
                "use_batch_norm_in_fusion_residual must be true or false (in a configuration also auto), found "
                f"{use_batch_norm_in_fusion_residual!r}"
            )
        if readout_type != "ignore" and getattr(self.backbone, "cls_token", None) is None:
            raise ValueError(
                f"readout_type {readout_type!r} needs a class token, which this backbone lacks: set 'ignore'"
            )
        self.readout_type = readout_type
        self.fusion_hidden_size = fusion_hidden_size
        self.neck = DPTNeck(self.embed_dim, fusion_hidden_size, readout_type, use_batch_norm_in_fusion_residual)
        self.head = DPTHead(fusion_hidden_size, num_classes, decoder_dropout)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the tokens of four blocks for images (B, C, H, W): (B, 1 + patches, embed_dim), class token first."""
        if self.readout_type == "ignore":
            maps = get_vit_features(self.backbone, x, self.feature_indices)
            return [_as_tokens(patches, patches.new_zeros(len(x), 1, self.embed_dim)) for patches in maps]
        pairs = get_vit_features(self.backbone, x, self.feature_indices, return_prefix_tokens=True)
        return [_as_tokens(patches, prefix[:, :1]) for patches, prefix in pairs]

    def decode(self, features: list[Tensor], output_size: Sequence[int]) -> Tensor:
        """Map tokens, shallow to deep, to logits (B, num_classes, *output_size)."""
        height, width = (side // self.patch_size for side in output_size)
        return resize(self.head(self.neck(features, (height, width))), output_size)


def _as_tokens(patches: Tensor, first: Tensor) -> Tensor:
    return torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1)


create_segmentation_model = DPTSegmentationModel


def resolve_options(options: dict[str, Any], batch_size: int, regions: bool) -> dict[str, Any]:
    """Decide what is `auto`, when the plans of an experiment are derived.

    Args:
        options: the keys of `model.decoder`.
        batch_size: images per batch.
        regions: whether the data set declares regions.
    """
    if options.get("use_batch_norm_in_fusion_residual") != "auto":
        return options
    return {**options, "use_batch_norm_in_fusion_residual": batch_size >= MIN_BATCH_SIZE_FOR_BATCH_NORM}
