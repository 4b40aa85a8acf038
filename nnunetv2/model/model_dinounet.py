"""Dino U-Net (2025, https://arxiv.org/abs/2508.20909): nnU-Net's decoder on a ViT-Adapter (Chen et al., 2023,
https://arxiv.org/abs/2205.08534).

image, tokens of four blocks → adapter: maps at strides 4 to 32 → fidelity-aware projection → upsampled to strides 1 to
8 → decoder of a U-Net → logits
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import Tensor, nn

from dinov3.eval.segmentation.models.backbone.vit_adapter import COARSEST_STRIDE, ViTAdapter, vit_tokens
from nnunetv2.model.fidelity_projection import NEGATIVE_SLOPE, FidelityAwareProjection
from nnunetv2.model.option_checks import check_dropout, check_levels
from nnunetv2.model.segmentation_model import ViTSegmentationModel

NUM_STAGES = 4
DOUBLINGS = 2  # the adapter's maps have strides 4 to 32, a U-Net's four stages 1 to 8
CONVOLUTIONS_PER_STAGE = 2
FROM_PLANS = "plans"


@dataclass
class UNetEncoderDescription:
    """What `UNetDecoder` asks an encoder about: ours is none of nnU-Net's. The values are those of its planner.

    Attributes:
        output_channels: widths of the skip connections, from the full size down.
        others: as in `dynamic_network_architectures`.
    """

    output_channels: list[int]
    strides: list[list[int]] = field(default_factory=lambda: [[1, 1]] + [[2, 2]] * (NUM_STAGES - 1))
    kernel_sizes: list[list[int]] = field(default_factory=lambda: [[3, 3]] * NUM_STAGES)
    conv_op: type[nn.Module] = nn.Conv2d
    conv_bias: bool = True
    norm_op: type[nn.Module] = nn.InstanceNorm2d
    norm_op_kwargs: dict[str, Any] = field(default_factory=lambda: {"eps": 1e-5, "affine": True})
    dropout_op: type[nn.Module] | None = None
    dropout_op_kwargs: dict[str, Any] | None = None
    nonlin: type[nn.Module] = nn.LeakyReLU
    nonlin_kwargs: dict[str, Any] = field(default_factory=lambda: {"inplace": True})


class RepeatedUpsampling(nn.ConvTranspose2d):
    """One transposed convolution, applied again and again: (B, C, h, w) → (B, C, 4h, 4w).

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, 4h, 4w)."""
        for _ in range(DOUBLINGS):
            x = super().forward(x)
        return x


class DinoUNetSegmentationModel(ViTSegmentationModel):
    """Dino U-Net on any ViT of the registry.

    Args:
        backbone_name: a family of the registry, or `timm:<name>`.
        backbone_size: a size of the family.
        num_classes: number of classes.
        backbone_arguments: the next ones of `ViTSegmentationModel`.
        features_per_stage: widths of the decoder, from the full size down to an eighth of it; in a configuration also
            `plans`, those of the first four stages of the plans derived from.
        rank: channels of the projections.
        drop_path_rate: probability that a feed-forward network of the adapter is skipped in training.
        auxiliary_outputs: train with nnU-Net's deep supervision: logits at a half and a quarter of the size join the
            loss.
        deep_supervision: whether to return these logits too; nnU-Net's trainer passes it, and switches it by
            `decoder.deep_supervision`.
        backbone_options: see `ViTSegmentationModel`; there must be four feature layers.

    Raises:
        ValueError: an impossible width or layer, or deep supervision without auxiliary outputs.
    """

    # of a ViT-L not quite the ends of the quarters, as in DINOv3's own adapter
    LAYER_INDICES: ClassVar[dict[int, list[int]]] = {**ViTSegmentationModel.LAYER_INDICES, 24: [4, 11, 17, 23]}

    def __init__(
        self,
        backbone_name: str = "dinov3",
        backbone_size: str = "large",
        num_classes: int = 1,
        *backbone_arguments: Any,
        features_per_stage: Sequence[int] | str = (32, 64, 128, 256),
        rank: int = 256,
        drop_path_rate: float = 0.3,
        auxiliary_outputs: bool = False,
        deep_supervision: bool = False,
        **backbone_options: Any,
    ) -> None:
        # with auxiliary outputs this decoder has what the base class says that decoders have not
        single_output = {"deep_supervision": deep_supervision and not auxiliary_outputs}
        super().__init__(
            backbone_name, backbone_size, num_classes, *backbone_arguments, **single_output, **backbone_options
        )
        check_levels("Dino U-Net's adapter", self.feature_indices)
        check_dropout("drop_path_rate", drop_path_rate)
        if rank < 1:
            raise ValueError(f"rank must be at least 1, found {rank}")
        widths = _checked_widths(features_per_stage)
        self.adapter = ViTAdapter(self.embed_dim, self.input_channels, drop_path_rate=drop_path_rate)
        self.projection = FidelityAwareProjection(self.embed_dim, widths, rank)
        self.upsampling = nn.ModuleList(RepeatedUpsampling(width) for width in widths)
        self.decoder = UNetDecoder(
            UNetEncoderDescription(widths), num_classes, CONVOLUTIONS_PER_STAGE, deep_supervision
        )
        if not auxiliary_outputs:  # their layers would never get a gradient
            self.decoder.seg_layers = self.decoder.seg_layers[-1:]
        for part in (self.projection, self.upsampling, self.decoder):
            part.apply(InitWeights_He(NEGATIVE_SLOPE))

    @property
    def padding_multiple(self) -> int:
        """Images are padded to multiples of the adapter's coarsest stride."""
        return COARSEST_STRIDE

    @property
    def deep_supervision_scales(self) -> list[list[float]]:
        """Sizes of the outputs under deep supervision as shares of the image's, rows and columns, from the largest."""
        return [[0.5**i] * 2 for i in range(len(self.decoder.seg_layers))]

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return normalised images (B, C, H, W), and the patch tokens (B, H/16 · W/16, embed_dim) of four blocks."""
        return [x, *vit_tokens(self.backbone, x, self.feature_indices)]

    def decode(self, features: list[Tensor], output_size: Sequence[int]) -> Tensor | list[Tensor]:
        """Map images and tokens to logits (B, num_classes, *output_size); under deep supervision to those of all sizes.

        The output size is that of the images, whose sides are multiples of 32.
        """
        image, *tokens = features
        maps = self.projection(list(self.adapter.adapt(image, tokens).values()))
        return self.decoder([up(x) for up, x in zip(self.upsampling, maps, strict=True)])

    def crop(self, logits: Tensor | list[Tensor], size: Sequence[int]) -> Tensor | list[Tensor]:
        """Crop the logits of padded images to the size of the images; those of other sizes to their share of it."""
        if isinstance(logits, Tensor):
            return super().crop(logits, size)
        crop, cropped = super().crop, []
        for x, scales in zip(logits, self.deep_supervision_scales, strict=True):
            # rounded as nnU-Net does for the targets
            cropped.append(crop(x, [round(side * scale) for side, scale in zip(size, scales, strict=True)]))
        return cropped


def _checked_widths(features_per_stage: Sequence[int] | str) -> list[int]:
    """The widths as a list.

    Raises:
        ValueError: they are not four positive whole numbers.
    """
    widths = [] if isinstance(features_per_stage, str) else list(features_per_stage)
    if len(widths) != NUM_STAGES or not all(type(width) is int and width > 0 for width in widths):
        raise ValueError(
            f"features_per_stage must be four positive whole numbers (in a configuration also {FROM_PLANS!r}), found "
            f"{features_per_stage!r}"
        )
    return widths


create_segmentation_model = DinoUNetSegmentationModel


def resolve_options(
    options: dict[str, Any], batch_size: int, regions: bool, features_per_stage: Sequence[int] | None
) -> dict[str, Any]:
    """Take the widths from the plans derived from, where the options say so.

    Args:
        options: the decoder's keywords.
        batch_size: images per batch.
        regions: whether the data set declares regions.
        features_per_stage: widths of the U-Net of the plans derived from; None if they describe none.

    Raises:
        ValueError: these plans have no such widths.
    """
    if options.get("features_per_stage") != FROM_PLANS:
        return options
    if features_per_stage is None or len(features_per_stage) < NUM_STAGES:
        raise ValueError(
            f"features_per_stage is {FROM_PLANS!r}, but the plans derived from describe no U-Net of at least "
            f"{NUM_STAGES} stages: give four numbers, or pass other plans with -p"
        )
    return {**options, "features_per_stage": list(features_per_stage[:NUM_STAGES])}
