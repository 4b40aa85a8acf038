"""Whole segmentors: a ViT and a decoder.

`m2f` is ViT-Adapter and Mask2Former, `linear` a linear classifier of patches.
"""

from collections.abc import Callable, Sequence
from enum import Enum

import torch
from torch import Tensor, nn

from dinov3.eval.segmentation.models.backbone.dinov3_adapter import DINOv3_Adapter
from dinov3.eval.segmentation.models.heads.linear_head import LinearHead
from dinov3.eval.segmentation.models.heads.mask2former_head import COMMON_STRIDE, FEATURES, Mask2FormerHead
from dinov3.eval.segmentation.models.utils.extent import crop_extent, pad_to, resize, round_up
from dinov3.eval.segmentation.models.utils.freezing import freeze, trains
from dinov3.eval.segmentation.precision import autocast_to
from dinov3.models.reference_interface import wear_reference_interface

DECODER_TYPES = ("m2f", "linear")


class BackboneLayersSet(Enum):
    """Which blocks of the ViT a decoder reads."""

    LAST = "LAST"
    FOUR_LAST = "FOUR_LAST"
    FOUR_EVEN_INTERVALS = "FOUR_EVEN_INTERVALS"

    def indices(self, depth: int) -> list[int]:
        """0-based indices for a ViT of `depth` blocks.

        Raises:
            ValueError: four blocks are to be read, and there are fewer.
        """
        if self is BackboneLayersSet.LAST:
            return [depth - 1]
        if depth < 4:
            raise ValueError(f"{self.name} needs at least four blocks, the ViT has {depth}")
        if self is BackboneLayersSet.FOUR_LAST:
            return list(range(depth - 4, depth))
        if depth == 24:
            return [4, 11, 17, 23]  # the reference's choice for ViT-L
        return [quarter * (depth // 4) - 1 for quarter in (1, 2, 3, 4)]


class IntermediateFeatures(nn.Module):
    """The maps of some blocks of a ViT, after its final norm.

    Args:
        feature_model: a ViT with the reference's interface, also under peft.
        layers: 0-based indices of the blocks.
        lora_enabled: keep the adapters' matrices (`lora_`) trainable, and nothing else.
        freeze_backbone: without adapters: stop the training of the ViT.
    """

    def __init__(
        self, feature_model: nn.Module, layers: Sequence[int], lora_enabled: bool, freeze_backbone: bool
    ) -> None:
        super().__init__()
        self.feature_model = feature_model
        self.layers = list(layers)
        freeze(feature_model, lora_enabled, freeze_backbone)
        self.train(self.training)

    def train(self, mode: bool = True) -> "IntermediateFeatures":
        """Set the training mode; a ViT of which nothing trains stays in evaluation mode."""
        super().train(mode)
        if not trains(self.feature_model):
            self.feature_model.eval()
        return self

    def covered(self, size: Sequence[int]) -> tuple[int, int]:
        """What the maps of an image of this (H, W) cover, in pixels: it is padded to whole patches."""
        return round_up(size, self.feature_model.patch_size)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map images (B, C, H, W) to maps (B, embed_dim, h, w), one per block."""
        x = pad_to(x, self.covered(x.shape[-2:]))
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains(self.feature_model)):
            return self.feature_model.get_intermediate_layers(x, n=self.layers, reshape=True)


class FeatureDecoder(nn.Module):
    """A segmentor.

    Args:
        backbone: images to maps; says by `covered` what the maps of an image cover.
        decoder: maps to logits, or to queries.
        autocast_dtype: precision of the computation, where it is not float32.
    """

    def __init__(self, backbone: nn.Module, decoder: nn.Module, autocast_dtype: torch.dtype = torch.float32) -> None:
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
        decoder = self.segmentation_model[1]
        return self._segment(inputs, decoder)

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
            output = decode(backbone(inputs))
        return crop_output(output, backbone.covered(inputs.shape[-2:]), inputs.shape[-2:])


def _size(features: dict[str, Tensor] | Sequence[Tensor]) -> Sequence[int]:
    """Of the first map."""
    return next(iter(features.values() if isinstance(features, dict) else features)).shape[-2:]


def crop_output(output: Tensor | dict | list, covered: Sequence[int], wanted: Sequence[int]) -> Tensor | dict | list:
    """Let maps of a padded image cover the image alone (see `crop_extent`).

    Args:
        output: a map (B, C, h, w), or what a head returns of queries.
        covered: (height, width) of the padded image, in pixels.
        wanted: (height, width) of the image.
    """
    if isinstance(output, Tensor):
        return crop_extent(output, covered, wanted)
    if isinstance(output, list):
        return [crop_output(entry, covered, wanted) for entry in output]
    return {
        name: entry if name == "pred_logits" else crop_output(entry, covered, wanted) for name, entry in output.items()
    }


def build_segmentation_decoder(
    backbone_model: nn.Module,
    backbone_out_layers: BackboneLayersSet | str | Sequence[int] = BackboneLayersSet.FOUR_EVEN_INTERVALS,
    decoder_type: str = "linear",
    hidden_dim: int = 2048,
    num_classes: int = 150,
    dropout: float = 0.1,
    autocast_dtype: torch.dtype = torch.float32,
    lora_enabled: bool = False,
    num_queries: int = 100,
    *,
    freeze_backbone: bool = True,
    **head_options: int,
) -> FeatureDecoder:
    """Join a ViT and a decoder, which is created on the device of the ViT; that may be `meta`.

    Args:
        backbone_model: a ViT of `dinov3.hub.backbones`, or any ViT of timm, also with adapters of peft.
        backbone_out_layers: the blocks to read: a set of this enumeration (or its name), or 0-based indices.
        decoder_type: `m2f` (ViT-Adapter and Mask2Former) or `linear`.
        hidden_dim: `m2f`: channels of the head.
        num_classes: number of classes.
        dropout: `linear`: probability that a channel is dropped in training.
        autocast_dtype: precision of the computation, where it is not float32.
        lora_enabled: keep the adapters' matrices (`lora_`) of the ViT trainable, and nothing else of it.
        num_queries: `m2f`: number of queries.
        freeze_backbone: without adapters: stop the training of the ViT.
        head_options: `m2f`: further keywords of `Mask2FormerHead`, such as `dim_feedforward`.

    Raises:
        ValueError: an unknown decoder, or blocks that it cannot work with.
    """
    if decoder_type not in DECODER_TYPES:
        raise ValueError(f"decoder_type must be one of {', '.join(DECODER_TYPES)}, found {decoder_type!r}")
    wear_reference_interface(backbone_model)
    layers = layer_indices(backbone_out_layers, backbone_model.n_blocks)
    with backbone_model.patch_embed.proj.weight.device:  # what is new is created where the ViT is
        if decoder_type == "linear":
            features = IntermediateFeatures(backbone_model, layers, lora_enabled, freeze_backbone)
            head = LinearHead([backbone_model.embed_dim] * len(layers), num_classes, dropout=dropout)
            return FeatureDecoder(features, head, autocast_dtype)
        adapter = DINOv3_Adapter(
            backbone_model, layers, lora_enabled=lora_enabled, freeze_backbone=freeze_backbone
        ).eval()  # as the reference's is, until the whole is set to training
        shape = (backbone_model.embed_dim, 0, 0, COMMON_STRIDE)
        head = Mask2FormerHead(
            dict.fromkeys(FEATURES, shape), hidden_dim, num_classes, num_queries=num_queries, **head_options
        )
        return FeatureDecoder(adapter, head, autocast_dtype)


def layer_indices(layers: BackboneLayersSet | str | Sequence[int], depth: int) -> list[int]:
    """0-based indices of the blocks to read, of a ViT of `depth` blocks.

    Args:
        layers: a set (or its name), or the indices themselves.
        depth: number of blocks.

    Raises:
        ValueError: there is no such set, or no such block.
    """
    if isinstance(layers, str):
        if layers not in BackboneLayersSet.__members__:
            allowed = ", ".join(BackboneLayersSet.__members__)
            raise ValueError(f"unknown set of layers {layers!r}; allowed: {allowed}")
        layers = BackboneLayersSet[layers]
    indices = layers.indices(depth) if isinstance(layers, BackboneLayersSet) else list(layers)
    if not indices or indices != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= depth:
        raise ValueError(f"the layers {indices} must be ascending block indices from 0 to {depth - 1}")
    return indices
