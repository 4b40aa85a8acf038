"""Mask2Former's head: pixel decoder and transformer decoder (Cheng et al., 2022, https://arxiv.org/abs/2112.01527)."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from dinov3.eval.segmentation.models.heads.mask2former_transformer_decoder import MultiScaleMaskedTransformerDecoder
from dinov3.eval.segmentation.models.heads.pixel_decoder import MSDeformAttnPixelDecoder
from dinov3.eval.segmentation.models.utils.extent import resize

FEATURES = ("1", "2", "3", "4")
COMMON_STRIDE = 4
PIXEL_FEATURES = "multi_scale_pixel_decoder"


class Mask2FormerHead(nn.Module):
    """Mask2Former's head.

    Args:
        input_shape: per map (`1` to `4`) its (channels, height, width, stride).
        hidden_dim: channels of everything inside; a multiple of 32 and of the attention heads.
        num_classes: number of classes.
        loss_weight: not read; kept for the reference's callers.
        ignore_value: not read; kept for the reference's callers.
        transformer_in_feature: must be `multi_scale_pixel_decoder`.
        num_queries: number of queries.
        nheads: attention heads of both decoders.
        dim_feedforward: channels inside of the feed-forward networks of both.
        enc_layers: layers of the pixel decoder's encoder.
        dec_layers: layers of the transformer decoder.

    Raises:
        ValueError: a width that groups or attention heads cannot share, or another `transformer_in_feature`.
    """

    def __init__(
        self,
        input_shape: Mapping[str, Sequence[int]],
        hidden_dim: int = 2048,
        num_classes: int = 150,
        loss_weight: float = 1.0,
        ignore_value: int = -1,
        transformer_in_feature: str = PIXEL_FEATURES,
        *,
        num_queries: int = 100,
        nheads: int = 16,
        dim_feedforward: int = 4096,
        enc_layers: int = 6,
        dec_layers: int = 9,
    ) -> None:
        super().__init__()
        if transformer_in_feature != PIXEL_FEATURES:
            raise ValueError(f"transformer_in_feature must be {PIXEL_FEATURES!r}, found {transformer_in_feature!r}")
        if hidden_dim % 32 or hidden_dim % nheads:
            raise ValueError(f"hidden_dim must be a multiple of 32 and of {nheads} attention heads, found {hidden_dim}")
        self.num_classes = num_classes
        self.pixel_decoder = MSDeformAttnPixelDecoder(
            input_shape,
            transformer_dropout=0.0,
            transformer_nheads=nheads,
            transformer_dim_feedforward=dim_feedforward,
            transformer_enc_layers=enc_layers,
            conv_dim=hidden_dim,
            mask_dim=hidden_dim,
            norm="GN",
            transformer_in_features=FEATURES,
            common_stride=COMMON_STRIDE,
        )
        self.predictor = MultiScaleMaskedTransformerDecoder(
            hidden_dim,
            num_classes=num_classes,
            hidden_dim=hidden_dim,
            num_queries=num_queries,
            nheads=nheads,
            dim_feedforward=dim_feedforward,
            dec_layers=dec_layers,
            pre_norm=False,
            mask_dim=hidden_dim,
            enforce_input_project=False,
        )

    def forward_features(self, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Run the pixel decoder alone (see `MSDeformAttnPixelDecoder.forward_features`)."""
        return self.pixel_decoder.forward_features(features)

    def forward(self, features: Mapping[str, Tensor], mask: None = None) -> dict[str, Tensor | list]:
        """Map maps `1` to `4` to a class and a mask per query.

        Args:
            features: per name a map (B, channels, h, w).
            mask: not read; kept for the reference's callers.

        Returns:
            See `MultiScaleMaskedTransformerDecoder.forward`; the masks have the size of map `1`.
        """
        mask_features, _, maps = self.forward_features(features)
        return self.predictor(maps, mask_features)

    def predict(
        self, features: Mapping[str, Tensor], mask: None = None, rescale_to: Sequence[int] = (512, 512)
    ) -> dict[str, Tensor | list]:
        """Map maps as `forward` does, and resize the final masks' logits to `rescale_to`."""
        output = self.forward(features)
        masks = resize(output["pred_masks"], rescale_to)
        return {**output, "pred_masks": masks}
