"""The configuration of a Mask2Former experiment: what stands in the YAML file, with its defaults and rules."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Optional

from nnunetv2.experiment.decoder_options import MASK2FORMER
from nnunetv2.experiment.schema import Rule, above, at_least, one_of, option, within
from nnunetv2.training.nnUNetTrainer.vit_config import (
    BLOCKS,
    M2F_TRAINER,
    BackboneConfig,
    TrainConfig,
    ViTLoRAConfig,
    ViTnnUNetConfig,
)

# ruff: noqa: UP045  (as in vit_config)

LAYER_SETS = ("FOUR_EVEN_INTERVALS", "FOUR_LAST")
HEAD_WIDTH = Rule("a positive multiple of 32", lambda v: v > 0 and v % 32 == 0)  # 32 groups, 16 attention heads


def _names_four_blocks(value: Any) -> bool:
    if isinstance(value, str):
        return value in LAYER_SETS
    return isinstance(value, list) and len(value) == 4 and all(type(v) is int for v in value) and BLOCKS.holds(value)


@dataclass
class M2FModelConfig(BackboneConfig):
    """The network: key `model`."""

    hidden_dim: int = option(2048, "channels of the head; 256 is enough for ViT-S to ViT-L", HEAD_WIDTH)
    num_queries: int = option(100, "number of queries", at_least(1))
    backbone_out_layers: Any = option(
        "FOUR_EVEN_INTERVALS",
        "the four blocks that the adapter reads: `FOUR_EVEN_INTERVALS`, `FOUR_LAST`, or 0-based numbers",
        Rule(f"{', '.join(LAYER_SETS)} or four ascending numbers from 0", _names_four_blocks),
    )
    autocast_dtype: str = option(
        "float32",
        "precision of the network's forward pass (see `train.precision`, which is the same)",
        one_of("float32", "float16", "bfloat16"),
    )

    @property
    def model_path(self) -> str:
        """The module of the network."""
        return MASK2FORMER

    @property
    def out_layers(self) -> str | list[int]:
        """The blocks that the adapter reads."""
        return self.backbone_out_layers

    @property
    def decoder(self) -> dict[str, Any]:
        """Keywords of the decoder."""
        return {"hidden_dim": self.hidden_dim, "num_queries": self.num_queries}


@dataclass
class M2FLoRAConfig(ViTLoRAConfig):
    """Low-rank adaptation of the backbone: key `lora`; on by default."""

    enabled: bool = option(True, "train low-rank adapters in the backbone, whatever `model.freeze_backbone` says")
    target_modules: list[str] = option(
        ["qkv", "proj"],
        "layers of the transformer blocks to adapt: qkv, proj (the attention's projection), fc1, fc2",
        Rule("not empty", bool),
    )
    lora_dropout: float = option(0.1, "dropout on the adapters' input", Rule("in [0, 1)", lambda v: 0 <= v < 1))
    bias: str = option("none", "biases of the backbone that train beside the adapters: none", one_of("none"))
    use_rslora: bool = option(False, "scale the adapters by lora_alpha / √r instead of lora_alpha / r")

    @property
    def scale(self) -> float:
        """The adapters' output is scaled by this, divided by the rank."""
        return self.lora_alpha * math.sqrt(self.r) if self.use_rslora else self.lora_alpha


@dataclass
class M2FTrainConfig:
    """The loss of mask classification: key `m2f_train`."""

    num_points: int = option(12544, "points at which a mask is compared", at_least(1))
    oversample_ratio: float = option(3.0, "this times num_points candidates are drawn", within(1, 1000))
    importance_sample_ratio: float = option(
        0.75,
        "share of the points that are the most uncertain candidates; the others are random",
        Rule("in [0, 1]", lambda v: 0 <= v <= 1),
    )
    mask_coefficient: float = option(5.0, "weight of the cross-entropy of masks", at_least(0))
    dice_coefficient: float = option(5.0, "weight of their Dice loss", at_least(0))
    class_coefficient: float = option(2.0, "weight of the classes' cross-entropy", at_least(0))
    no_object_coefficient: float = option(0.1, "weight of `no object` within the classes' cross-entropy", above(0))
    auxiliary_losses: bool = option(True, "add the losses of the initial queries and of every layer before the last")

    def problems(self) -> Iterator[str]:
        """Yield what is impossible about combinations of values."""
        if self.mask_coefficient == self.dice_coefficient == self.class_coefficient == 0:
            yield (
                "one of m2f_train.mask_coefficient, m2f_train.dice_coefficient and m2f_train.class_coefficient must be "
                "above 0, or nothing is learnt; found 0 for all"
            )


@dataclass
class M2FOptimisationConfig(TrainConfig):
    """The training: key `train`; the largest norm of the gradient is the root's `gradient_clip`."""

    optimizer: str = option("adamw", "`sgd` (Nesterov) or `adamw`", one_of("sgd", "adamw"))
    initial_lr: Optional[float] = option(0.0001, "learning rate (null, nnU-Net: 0.01)", above(0))
    weight_decay: Optional[float] = option(0.05, "weight decay (null, nnU-Net: 0.00003)", at_least(0))
    backbone_lr_factor: float = option(
        0.1, "factor on the learning rate of the backbone's own weights; full fine-tuning only", above(0)
    )
    schedule: str = option(
        "onecycle",
        "learning rate over the epochs; `onecycle` warms up for 30 % of them, or for warmup_epochs",
        one_of("poly", "cosine", "onecycle"),
    )
    precision: Optional[str] = option(
        None,
        "null: as model.autocast_dtype; another value than there is an error",
        one_of("float32", "float16", "bfloat16"),
    )
    compile: Optional[bool] = option(False, "torch.compile, on a GPU (null: as the variable nnUNet_compile says)")


@dataclass
class M2FnnUNetConfig(ViTnnUNetConfig):
    """A Mask2Former experiment: the root of the YAML file."""

    TRAINERS: ClassVar[tuple[str, ...]] = (M2F_TRAINER,)
    CLIP_KEY: ClassVar[str] = "gradient_clip"
    PRECISION_KEY: ClassVar[str] = "model.autocast_dtype"

    trainer: str = option(M2F_TRAINER, "the trainer class; `-tr` overrides it")
    model: M2FModelConfig = option(M2FModelConfig, "the network")
    lora: M2FLoRAConfig = option(M2FLoRAConfig, "low-rank adaptation of the backbone")
    m2f_train: M2FTrainConfig = option(M2FTrainConfig, "the loss")
    gradient_clip: float = option(10.0, "largest norm of the gradient", above(0))
    train: M2FOptimisationConfig = option(M2FOptimisationConfig, "the training")

    def stored(self) -> "M2FnnUNetConfig":
        """The configuration as it goes into the plans, with its precision decided."""
        return replace(self, train=replace(self.train, precision=self.train.precision or self.model.autocast_dtype))

    def problems(self) -> Iterator[str]:
        """Yield what is impossible about combinations of values."""
        yield from super().problems()
        yield from self.m2f_train.problems()
        if self.train.precision != self.model.autocast_dtype:
            yield (
                f"train.precision is {self.train.precision}, model.autocast_dtype {self.model.autocast_dtype}: they "
                "stand for the same; set model.autocast_dtype, and leave train.precision out"
            )
