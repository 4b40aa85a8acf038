"""Whole segmentors: a ViT and a decoder.

`m2f` is ViT-Adapter and Mask2Former, `linear` a linear classifier of patches.
"""

from collections.abc import Callable, Sequence

import torch
from timm.models import Eva, VisionTransformer
from torch import Tensor, nn

from dinov3.eval.segmentation.models.backbone.dinov3_adapter import DINOv3_Adapter
from dinov3.eval.segmentation.models.heads.linear_head import LinearHead
from dinov3.eval.segmentation.models.heads.mask2former_head import COMMON_STRIDE, FEATURES, Mask2FormerHead
from dinov3.eval.segmentation.models.utils.extent import crop_output, pad_to_multiple, resize
from dinov3.eval.segmentation.precision import autocast_to
from dinov3.models.feature_layers import BackboneLayersSet, layer_indices
from dinov3.models.features import get_vit_features
from dinov3.models.freezing import eval_if_frozen, freeze
from dinov3.models.timm_dinov3 import is_dinov3, match_reference

DECODER_TYPES = ("m2f", "linear")


class IntermediateFeatures(nn.Module):
    """The feature maps of some blocks of a ViT.

    Args:
        feature_model: a plain ViT of timm, also under peft.
        layers: 0-based indices of the blocks.
        lora_enabled: keep the adapters' matrices (`lora_`) trainable, and nothing else.
        freeze_backbone: without adapters: freeze the ViT.
        norm: apply the ViT's final norm to every map.
        cls_token: pair every map with the class token of its block.

    Raises:
        ValueError: the class token is asked of a ViT that has none.
    """

    def __init__(
        self,
        feature_model: nn.Module,
        layers: Sequence[int],
        lora_enabled: bool,
        freeze_backbone: bool,
        norm: bool = True,
        cls_token: bool = False,
    ) -> None:
        super().__init__()
        if cls_token and getattr(feature_model, "cls_token", None) is None:
            raise ValueError("use_cls_token: this ViT has no class token")
        self.feature_model = feature_model
        self.layers = list(layers)
        self.norm, self.cls_token = norm, cls_token
        self.size_multiple: int = feature_model.patch_embed.patch_size[0]
        freeze(feature_model, lora_enabled, freeze_backbone)
        self.train(self.training)

    def train(self, mode: bool = True) -> "IntermediateFeatures":
        """Set the training mode; a ViT of which nothing trains stays in evaluation mode."""
        super().train(mode)
        eval_if_frozen(self.feature_model)
        return self

    def forward(self, x: Tensor) -> list[Tensor] | list[tuple[Tensor, Tensor]]:
        """Map images to the features of each block; images are padded to whole patches.

        Args:
            x: (B, C, H, W).

        Returns:
            Maps (B, embed_dim, h, w), or pairs of a map and the class token, (B, embed_dim).
        """
        padded = pad_to_multiple(x, self.size_multiple)
        features = get_vit_features(self.feature_model, padded, self.layers, self.cls_token, norm=self.norm)
        return [(patches, prefix[:, 0]) for patches, prefix in features] if self.cls_token else features


class FeatureDecoder(nn.Module):
    """A segmentor.

    Args:
        backbone: images to maps; its `size_multiple` says to multiples of what images are padded for it.
        decoder: maps to logits, or to queries.
        autocast_dtype: precision of the computation, where it is not float32; None: what autocast says around the call.
    """

    def __init__(
        self, backbone: nn.Module, decoder: nn.Module, autocast_dtype: torch.dtype | None = torch.float32
    ) -> None:
        super().__init__()
        self.segmentation_model = nn.ModuleList([backbone, decoder])
        self.autocast_dtype = autocast_dtype

    def forward(self, inputs: Tensor) -> Tensor | dict[str, Tensor | list]:
        """Segment images.

        Args:
            inputs: (B, C, H, W), of at least a pixel.

        Returns:
            `linear`: logits (B, num_classes, ⌈H / patch⌉, ⌈W / patch⌉). `m2f`: queries, see `Mask2FormerHead.forward`,
            with masks (B, Q, ⌈H / 4⌉, ⌈W / 4⌉). They cover the image, and nothing of what it is padded with.
        """
        return self._segment(inputs, self.segmentation_model[1])

    @torch.inference_mode()
    def predict(self, inputs: Tensor, rescale_to: Sequence[int] = (512, 512)) -> Tensor | dict[str, Tensor | list]:
        """Segment images as `forward` does, without dropout, and resize the (final) logits to `rescale_to`."""
        decoder = self.segmentation_model[1]
        output = self._segment(inputs, lambda features: decoder.predict(features, rescale_to=_size(features)))
        if isinstance(output, Tensor):
            return resize(output, rescale_to)
        return {**output, "pred_masks": resize(output["pred_masks"], rescale_to)}

    def _segment(self, inputs: Tensor, decode: Callable[..., Tensor | dict]) -> Tensor | dict[str, Tensor | list]:
        backbone = self.segmentation_model[0]
        with autocast_to(inputs.device, self.autocast_dtype):
            padded = pad_to_multiple(inputs, backbone.size_multiple)
            output = decode(backbone(padded))
        return crop_output(output, padded.shape[-2:], inputs.shape[-2:])


def _size(features: dict[str, Tensor] | Sequence[Tensor] | Sequence[tuple[Tensor, Tensor]]) -> Sequence[int]:
    """Of the first map."""
    first = next(iter(features.values() if isinstance(features, dict) else features))
    return (first if isinstance(first, Tensor) else first[0]).shape[-2:]


def build_segmentation_decoder(
    backbone_model: nn.Module,
    backbone_out_layers: BackboneLayersSet | str | Sequence[int] = BackboneLayersSet.FOUR_EVEN_INTERVALS,
    decoder_type: str = "linear",
    hidden_dim: int = 2048,
    num_classes: int = 150,
    dropout: float = 0.1,
    autocast_dtype: torch.dtype | None = torch.float32,
    lora_enabled: bool = False,
    num_queries: int = 100,
    *,
    freeze_backbone: bool = True,
    use_batchnorm: bool = True,
    use_cls_token: bool = False,
    use_backbone_norm: bool = True,
    **head_options: int,
) -> FeatureDecoder:
    """Join a ViT and a decoder, which is created on the device of the ViT; that may be `meta`.

    Args:
        backbone_model: a ViT of `dinov3.hub.backbones`, or any plain ViT of timm, also with adapters of peft; a DINOv3
            of timm's is made to compute like the reference, in place.
        backbone_out_layers: the feature layers: a set of this enumeration (or its name), or 0-based indices.
        decoder_type: `m2f` (ViT-Adapter and Mask2Former) or `linear`.
        hidden_dim: `m2f`: channels of the head.
        num_classes: number of classes.
        dropout: `linear`: probability that a channel is dropped in training.
        autocast_dtype: precision of the computation, where it is not float32; None: what autocast says around the call.
        lora_enabled: keep the adapters' matrices (`lora_`) of the ViT trainable, and nothing else of it.
        num_queries: `m2f`: number of queries.
        freeze_backbone: without adapters: freeze the ViT.
        use_batchnorm: `linear`: whether there is a batch norm before the classifier.
        use_cls_token: `linear`: whether the class token is joined to every patch.
        use_backbone_norm: whether the ViT's final norm is applied to every feature layer; always with `m2f`.
        head_options: `m2f`: further keywords of `Mask2FormerHead`, such as `dim_feedforward`.

    Raises:
        ValueError: an unknown decoder, a model that is no plain ViT, feature layers that cannot be, or features that
            the decoder does not read.
    """
    if decoder_type not in DECODER_TYPES:
        raise ValueError(f"decoder_type must be one of {', '.join(DECODER_TYPES)}, found {decoder_type!r}")
    layers = layer_indices(backbone_out_layers, len(_prepared(backbone_model).blocks))
    with backbone_model.patch_embed.proj.weight.device:  # what is new is created where the ViT is
        if decoder_type == "linear":
            features = IntermediateFeatures(
                backbone_model, layers, lora_enabled, freeze_backbone, use_backbone_norm, use_cls_token
            )
            channels = [backbone_model.embed_dim] * len(layers)
            return FeatureDecoder(
                features, LinearHead(channels, num_classes, use_batchnorm, use_cls_token, dropout), autocast_dtype
            )
        if use_cls_token or not use_backbone_norm:
            raise ValueError("Mask2Former reads normalised features without the class token")
        adapter = DINOv3_Adapter(backbone_model, layers, lora_enabled=lora_enabled, freeze_backbone=freeze_backbone)
        shape = (backbone_model.embed_dim, 0, 0, COMMON_STRIDE)
        head = Mask2FormerHead(
            dict.fromkeys(FEATURES, shape), hidden_dim, num_classes, num_queries=num_queries, **head_options
        )
        # the adapter is in evaluation mode, as the reference's is, until the whole is set to training
        return FeatureDecoder(adapter.eval(), head, autocast_dtype)


def _prepared(backbone: nn.Module) -> nn.Module:
    """The ViT itself, without peft's wrapper; a DINOv3 is made to compute like the reference."""
    vit = backbone.get_base_model() if hasattr(backbone, "get_base_model") else backbone
    if not isinstance(vit, (Eva, VisionTransformer)):
        raise ValueError(f"the ViT must be timm's Eva or VisionTransformer, found {type(vit).__name__}")
    if is_dinov3(vit):
        match_reference(vit)
    return vit
