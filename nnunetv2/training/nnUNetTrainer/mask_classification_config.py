"""The configuration of an experiment with mask classification: what stands in the YAML file, its defaults and rules.

EoMT, PMT and networks of the user's own name their module and its options, as dense decoders do. Mask2Former, which
came first, has keys of its own for that (see `m2f_config`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Optional

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from dinov3.configuration.schema import Problem, Section, rule
from dinov3.configuration.yaml_files import find_path
from dinov3.eval.segmentation.config import M2FTrainConfig as LossDefaults
from nnunetv2.experiment.decoder_options import EOMT, MASK_CLASSIFICATION
from nnunetv2.training.nnUNetTrainer.experiment_config import Optimizer
from nnunetv2.training.nnUNetTrainer.vit_config import (
    M2F_TRAINER,
    BackboneConfig,
    BackboneTrainConfig,
    ViTModelConfig,
    ViTnnUNetConfig,
)

# ruff: noqa: UP045  (as in vit_config)

Fractions = Annotated[list[Annotated[float, Field(ge=0, le=1)]], rule("at least one number", bool)]


@dataclass
class StartConfig(BackboneConfig):
    """The key of `model` that a network of mask classification may start from."""

    decoder_checkpoint_path: str = ""
    """file of a trained decoder, in a published layout of EoMT, PMT or Mask2Former, with or without its ViT; empty: the
    decoder starts untrained"""

    def weight_problems(self) -> Iterator[str]:
        """Yield why a new training cannot have its pretrained weights, as far as it shows without torch and timm."""
        yield from super().weight_problems()
        if self.decoder_checkpoint_path and find_path(self.decoder_checkpoint_path) is None:
            yield f"model.decoder_checkpoint_path: no such file: {self.decoder_checkpoint_path!r}"


@dataclass
class MaskModelConfig(ViTModelConfig, StartConfig):
    """The network: key `model`."""

    model_path: str = EOMT
    """Python module with `create_segmentation_model`, whose network returns queries in training"""
    freeze_backbone: Optional[bool] = None
    """train the decoder only, which EoMT cannot; without effect where LoRA is enabled. null: false for EoMT, true for
    others"""

    @property
    def needs_backbone(self) -> bool:
        """Whether blocks of the backbone decode, so that it cannot be frozen."""
        return self.model_path == EOMT

    def _network_problems(self) -> Iterator[str]:
        if self.model_path.startswith("nnunetv2.model.") and self.model_path not in MASK_CLASSIFICATION:
            yield (
                f"model.model_path: {self.model_path} gives dense logits and trains with nnUNetTrainer_vit, "
                f"{M2F_TRAINER} trains networks with queries: {', '.join(MASK_CLASSIFICATION)}, or one of your own"
            )


@dataclass
class M2FTrainConfig(LossDefaults):
    """The loss of mask classification: key `m2f_train`. The defaults are inherited."""

    num_points: PositiveInt
    """points at which a mask is compared"""
    oversample_ratio: Annotated[float, Field(ge=1, lt=1000)]
    """this times num_points candidates are drawn"""
    importance_sample_ratio: Annotated[float, Field(ge=0, le=1)]
    """share of the points that are the most uncertain candidates; the others are random"""
    mask_coefficient: NonNegativeFloat
    """weight of the cross-entropy of masks"""
    dice_coefficient: NonNegativeFloat
    """weight of their Dice loss"""
    class_coefficient: NonNegativeFloat
    """weight of the classes' cross-entropy"""
    no_object_coefficient: PositiveFloat
    """weight of `no object` within the classes' cross-entropy"""
    auxiliary_losses: bool = True
    """add the losses of the initial queries and of every layer before the last"""

    def problems(self) -> Iterator[str]:
        """Yield what is impossible about combinations of values."""
        if self.mask_coefficient == self.dice_coefficient == self.class_coefficient == 0:
            yield (
                "one of m2f_train.mask_coefficient, m2f_train.dice_coefficient and m2f_train.class_coefficient must be "
                "above 0, or nothing is learned; found 0 for all"
            )


@dataclass
class MaskAnnealingConfig(Section):
    """When masked attention is annealed away: key `train.mask_annealing` (see `mask_annealing`)."""

    start: Fractions = field(default_factory=list)
    end: Fractions = field(default_factory=list)

    def problems(self) -> Iterator[str]:
        """Yield what is impossible about combinations of values."""
        name = "train.mask_annealing"
        keys = (f"{name}.start", f"{name}.end")
        if not self.start or len(self.start) != len(self.end):
            counts = f"{len(self.start)} and {len(self.end)}"
            yield Problem(f"{' and '.join(keys)} must be as many numbers, at least one, found {counts}", keys)
            return
        for start, end in zip(self.start, self.end, strict=True):
            if start > end:
                yield f"{name}: a block's start must not be after its end, found {start:g} and {end:g}"


@dataclass
class MaskOptimisationConfig(BackboneTrainConfig):
    """The training: key `train`; the maximum gradient norm is the root's `gradient_clip`."""

    optimizer: Optimizer = "adamw"
    initial_lr: Optional[PositiveFloat] = 0.0001
    weight_decay: Optional[NonNegativeFloat] = 0.05
    compile: Optional[bool] = False
    mask_annealing: Optional[MaskAnnealingConfig] = None
    """per block with masked attention, from the first, the fraction of the training until which its masks always apply
    (`start`), and from which they never do (`end`). null: the schedule of the paper for the number of blocks"""

    def problems(self) -> Iterator[str]:
        """Yield what is impossible about combinations of values."""
        yield from super().problems()
        if self.mask_annealing is not None:
            yield from self.mask_annealing.problems()


@dataclass
class MaskClassificationConfig(ViTnnUNetConfig):
    """An experiment with mask classification: the root of the YAML file."""

    TRAINERS: ClassVar[tuple[str, ...]] = (M2F_TRAINER,)
    CLIP_KEY: ClassVar[str] = "gradient_clip"

    trainer: str = M2F_TRAINER
    model: MaskModelConfig = field(default_factory=MaskModelConfig)
    m2f_train: M2FTrainConfig = field(default_factory=M2FTrainConfig)
    gradient_clip: PositiveFloat = 0.01
    """maximum gradient norm"""
    train: MaskOptimisationConfig = field(default_factory=MaskOptimisationConfig)

    def stored(self) -> "MaskClassificationConfig":
        """The configuration as it goes into the plans, where it is decided whether the backbone is frozen."""
        if self.model.freeze_backbone is not None:
            return self
        return replace(self, model=replace(self.model, freeze_backbone=not self.model.needs_backbone))

    def problems(self) -> Iterator[str]:
        """Yield what is impossible about combinations of values."""
        yield from super().problems()
        yield from self.m2f_train.problems()
        if self.mode == "frozen" and self.model.needs_backbone:
            yield (
                "model.freeze_backbone is true, but the last blocks of EoMT's backbone decode and must train: set it "
                "to false, enable lora, or take PMT, which is made for a frozen backbone (--config pmt)"
            )
