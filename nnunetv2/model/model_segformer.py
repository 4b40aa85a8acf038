"""SegFormer's all-MLP decoder on a ViT (Xie et al., "SegFormer", 2021, https://arxiv.org/abs/2105.15203).

backbone maps → a linear layer each → stacked, deepest first → 1×1 convolution, batch norm, ReLU → classes
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerDecodeHead

from nnunetv2.model.segmentation_model import ViTSegmentationModel, check_dropout, check_one_of
from nnunetv2.model.upsample import ProgressiveUpsampler, resize

UPSAMPLING = ("bilinear", "progressive", "full")


class SegFormerSegmentationModel(ViTSegmentationModel):
    """SegFormer's decoder on a ViT.

    Args:
        num_classes: number of classes.
        decoder_hidden_size: channels of the decoder.
        upsampling: `bilinear` classifies at the patch grid and resizes the logits; `progressive` upsamples features by
            learned stages; `full` resizes features to the size of the image before norm, activation and classifier.
        decoder_dropout: probability that an activation (`progressive`: also a channel) is dropped, in [0, 1).
        backbone_options: see `ViTSegmentationModel`.
    """

    def __init__(
        self,
        num_classes: int,
        decoder_hidden_size: int = 256,
        upsampling: str = "progressive",
        decoder_dropout: float = 0.1,
        **backbone_options: Any,
    ) -> None:
        super().__init__(num_classes, **backbone_options)
        check_one_of("upsampling", upsampling, UPSAMPLING)
        check_dropout("decoder_dropout", decoder_dropout)
        if decoder_hidden_size < 1:
            raise ValueError(f"decoder_hidden_size must be at least 1, found {decoder_hidden_size}")
        levels = len(self.feature_indices)
        config = SegformerConfig(
            num_encoder_blocks=levels,
            hidden_sizes=[self.embed_dim] * levels,
            decoder_hidden_size=decoder_hidden_size,
            classifier_dropout_prob=decoder_dropout,
            # with learned stages behind it the head gives features
            num_labels=decoder_hidden_size if upsampling == "progressive" else num_classes,
        )
        self.upsampling = upsampling
        self.decode_head = SegformerDecodeHead(config)
        self.upsampler: ProgressiveUpsampler | None = None
        if upsampling == "progressive":
            self.upsampler = ProgressiveUpsampler(
                decoder_hidden_size, num_classes, decoder_hidden_size, dropout=decoder_dropout
            )

    def decode(self, features: list[Tensor], output_size: Sequence[int]) -> Tensor:
        """Map features, shallow to deep, to logits (B, num_classes, *output_size)."""
        if self.upsampling == "full":
            return self._classify_at_full_size(features, output_size)
        x = self.decode_head(features)
        return resize(x, output_size) if self.upsampler is None else self.upsampler(x, output_size)

    def _classify_at_full_size(self, features: list[Tensor], output_size: Sequence[int]) -> Tensor:
        # The same as resizing every map first: a linear layer and a 1×1 convolution commute with resizing.
        head = self.decode_head
        projections = next(part for part in head.children() if isinstance(part, nn.ModuleList))
        projected = [
            linear(x).transpose(1, 2).unflatten(2, x.shape[-2:])
            for linear, x in zip(projections, features, strict=True)
        ]
        fused = resize(head.linear_fuse(torch.cat(projected[::-1], dim=1)), output_size)
        return head.classifier(head.dropout(head.activation(head.batch_norm(fused))))


def create_segmentation_model(
    num_classes: int,
    decoder_hidden_size: int = 256,
    upsampling: str = "progressive",
    decoder_dropout: float = 0.1,
    **backbone_options: Any,
) -> SegFormerSegmentationModel:
    """Create SegFormer on a ViT; the arguments are those of `SegFormerSegmentationModel` and `ViTSegmentationModel`."""
    return SegFormerSegmentationModel(num_classes, decoder_hidden_size, upsampling, decoder_dropout, **backbone_options)


def create_segformer_model(
    num_classes: int, decoder_hidden_size: int = 256, **options: Any
) -> SegFormerSegmentationModel:
    """Create SegFormer with its logits at the patch grid, resized (`upsampling="bilinear"` unless given)."""
    return create_segmentation_model(num_classes, decoder_hidden_size, **{"upsampling": "bilinear", **options})
