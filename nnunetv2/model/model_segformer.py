"""SegFormer's all-MLP decoder on a ViT (Xie et al., "SegFormer", 2021, https://arxiv.org/abs/2105.15203).

backbone maps → a linear layer each → concatenated, deepest first → 1×1 convolution, batch norm, ReLU → classes
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from nnunetv2.model.option_checks import check_dropout, check_one_of
from nnunetv2.model.segformer_head import SegFormerHead
from nnunetv2.model.segmentation_model import ViTSegmentationModel
from nnunetv2.model.upsample import ProgressiveUpsampler, resize

UPSAMPLING = ("bilinear", "progressive", "full")


class SegFormerSegmentationModel(ViTSegmentationModel):
    """SegFormer's decoder on a ViT.

    Args:
        backbone_name: a family of the registry, or `timm:<name>`.
        backbone_size: a size of the family.
        num_classes: number of classes.
        backbone_arguments: the next ones of `ViTSegmentationModel`.
        decoder_hidden_size: channels of the decoder.
        upsampling: `bilinear` classifies at the patch grid and resizes the logits; `progressive` upsamples features by
            learned stages; `full` resizes features to the size of the image before norm, activation and classifier.
        decoder_dropout: probability that an activation (`progressive`: also a channel) is dropped, in [0, 1).
        backbone_options: see `ViTSegmentationModel`.
    """

    def __init__(
        self,
        backbone_name: str = "dinov3",
        backbone_size: str = "large",
        num_classes: int = 1,
        *backbone_arguments: Any,
        decoder_hidden_size: int = 256,
        upsampling: str = "progressive",
        decoder_dropout: float = 0.1,
        **backbone_options: Any,
    ) -> None:
        super().__init__(backbone_name, backbone_size, num_classes, *backbone_arguments, **backbone_options)
        check_one_of("upsampling", upsampling, UPSAMPLING)
        check_dropout("decoder_dropout", decoder_dropout)
        if decoder_hidden_size < 1:
            raise ValueError(f"decoder_hidden_size must be at least 1, found {decoder_hidden_size}")
        self.decoder_hidden_size = decoder_hidden_size
        self.upsampling = upsampling
        # with learned stages behind it the head gives features
        out_channels = decoder_hidden_size if upsampling == "progressive" else num_classes
        in_channels = [self.embed_dim] * len(self.feature_indices)
        self.decode_head = SegFormerHead(in_channels, decoder_hidden_size, out_channels, decoder_dropout)
        self.upsampler: ProgressiveUpsampler | None = None
        if upsampling == "progressive":
            self.upsampler = ProgressiveUpsampler(
                decoder_hidden_size, num_classes, decoder_hidden_size, dropout=decoder_dropout
            )

    def decode(self, features: list[Tensor], output_size: Sequence[int]) -> Tensor:
        """Map features, shallow to deep, to logits (B, num_classes, *output_size)."""
        if self.upsampling == "full":
            # The same as resizing every map first: a linear layer and a 1×1 convolution commute with resizing.
            return self.decode_head.classify(resize(self.decode_head.fuse(features), output_size))
        x = self.decode_head(features)
        return resize(x, output_size) if self.upsampler is None else self.upsampler(x, output_size)


create_segmentation_model = SegFormerSegmentationModel


def create_segformer_model(
    backbone_name: str = "dinov3",
    backbone_size: str = "large",
    num_classes: int = 1,
    *backbone_arguments: Any,
    upsampling: str = "bilinear",
    **options: Any,
) -> SegFormerSegmentationModel:
    """Create SegFormer as `create_segmentation_model` does, by default with its logits at the patch grid, resized."""
    return create_segmentation_model(
        backbone_name, backbone_size, num_classes, *backbone_arguments, upsampling=upsampling, **options
    )
