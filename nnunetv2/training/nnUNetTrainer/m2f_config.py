"""The configuration of a Mask2Former experiment: what stands in the YAML file, with its defaults and rules.

It is that of mask classification, where the options of this one network are keys of `model`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Optional

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from dinov3.configuration.schema import rule
from nnunetv2.experiment.decoder_options import MASK2FORMER
from nnunetv2.training.nnUNetTrainer.experiment_config import BelowOne, Optimizer, Precision, Schedule
from nnunetv2.training.nnUNetTrainer.mask_classification_config import M2FTrainConfig as M2FTrainConfig  # its old place
from nnunetv2.training.nnUNetTrainer.mask_classification_config import MaskClassificationConfig, StartConfig
from nnunetv2.training.nnUNetTrainer.vit_config import (
    BackboneTrainConfig,
    Layers,
    ViTLoRAConfig,
    is_ascending,
)

# ruff: noqa: UP045  (as in vit_config)

LAYER_SETS = ("FOUR_EVEN_INTERVALS", "FOUR_LAST")


def _names_four_blocks(value: Any) -> bool:
    if not isinstance(value, list):
        return value in LAYER_SETS
    return len(value) == 4 and all(type(v) is int and v >= 0 for v in value) and is_ascending(value)


FourBlocks = Annotated[  # a text or a list: OmegaConf has no such union
    Any, rule(f"{', '.join(LAYER_SETS)} or four ascending numbers from 0", _names_four_blocks)
]


@dataclass
class M2FModelConfig(StartConfig):
    """The network: key `model`."""

    hidden_dim: Annotated[PositiveInt, Field(multiple_of=32)] = 2048  # 32 groups, 16 attention heads
    """channels of the head; 256 is enough for ViT-S to ViT-L"""
    num_queries: PositiveInt = 100
    """number of queries"""
    backbone_out_layers: FourBlocks = "FOUR_EVEN_INTERVALS"
    """the four blocks that the adapter reads: `FOUR_EVEN_INTERVALS`, `FOUR_LAST`, or ascending 0-based numbers"""
    autocast_dtype: Precision = "float32"
    """precision of the network's forward pass (see `train.precision`, which is the same)"""

    @model_validator(mode="before")
    @classmethod
    def _of_mask2former(cls, values: Any) -> Any:
        """Take files that name the module, which other networks of mask classification must."""
        if isinstance(values, dict) and values.get("model_path") == MASK2FORMER:
            return {key: value for key, value in values.items() if key != "model_path"}
        return values

    @property
    def needs_backbone(self) -> bool:
        """Whether blocks of the backbone decode, so that it cannot be frozen."""
        return False

    @staticmethod
    def decoder_keys(options: dict[str, Any]) -> dict[str, Any]:
        """The keys of `model` that stand for the options of the decoder."""
        return {key: options[key] for key in ("hidden_dim", "num_queries")}

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

    enabled: bool = True
    target_modules: Layers = field(default_factory=lambda: ["qkv", "proj"])
    lora_dropout: BelowOne = 0.1

    @model_validator(mode="before")
    @classmethod
    def _without_bias(cls, values: Any) -> Any:
        """Take files that say that no bias trains: the reference has a key for it."""
        if isinstance(values, dict) and values.get("bias") == "none":
            return {key: value for key, value in values.items() if key != "bias"}
        return values


@dataclass
class M2FOptimisationConfig(BackboneTrainConfig):
    """The training: key `train`; the maximum gradient norm is the root's `gradient_clip`."""

    optimizer: Optimizer = "adamw"
    initial_lr: Optional[PositiveFloat] = 0.0001
    weight_decay: Optional[NonNegativeFloat] = 0.05
    backbone_lr_factor: PositiveFloat = 0.1
    schedule: Schedule = "onecycle"
    precision: Optional[Precision] = None
    """null: as model.autocast_dtype; another value than there is an error"""
    compile: Optional[bool] = False


@dataclass
class M2FnnUNetConfig(MaskClassificationConfig):
    """A Mask2Former experiment: the root of the YAML file."""

    PRECISION_KEY: ClassVar[str] = "model.autocast_dtype"

    model: M2FModelConfig = field(default_factory=M2FModelConfig)
    lora: M2FLoRAConfig = field(default_factory=M2FLoRAConfig)
    gradient_clip: PositiveFloat = 10.0
    """maximum gradient norm"""
    train: M2FOptimisationConfig = field(default_factory=M2FOptimisationConfig)

    @classmethod
    def schema_for(cls, values: dict[str, Any]) -> type[MaskClassificationConfig]:
        """The schema of a configuration: this one, unless `model.model_path` names another network."""
        model = values.get("model")
        network = model.get("model_path", MASK2FORMER) if isinstance(model, dict) else MASK2FORMER
        return cls if network == MASK2FORMER else MaskClassificationConfig

    def stored(self) -> "M2FnnUNetConfig":
        """The configuration as it goes into the plans, with its precision decided."""
        return replace(self, train=replace(self.train, precision=self.train.precision or self.model.autocast_dtype))

    def problems(self) -> Iterator[str]:
        """Yield what is impossible about combinations of values."""
        yield from super().problems()
        if self.train.precision != self.model.autocast_dtype:
            yield (
                f"train.precision is {self.train.precision}, model.autocast_dtype {self.model.autocast_dtype}: they "
                "stand for the same; set model.autocast_dtype, and leave train.precision out"
            )
