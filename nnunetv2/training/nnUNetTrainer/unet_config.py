"""The configuration of a U-Net experiment: nnU-Net's own network, trained as the other experiments are."""

from dataclasses import dataclass, field
from typing import ClassVar, Optional

from pydantic import PositiveFloat

from nnunetv2.training.nnUNetTrainer.experiment_config import ExperimentConfig, TrainConfig

# ruff: noqa: UP045  (as in experiment_config)


@dataclass
class UNetTrainConfig(TrainConfig):
    """The training: key `train`."""

    gradient_clip: Optional[PositiveFloat] = None
    """maximum gradient norm (nnU-Net: 12)"""


@dataclass
class UNetConfig(ExperimentConfig):
    """A U-Net experiment: the root of the YAML file."""

    TRAINERS: ClassVar[tuple[str, ...]] = ("nnUNetTrainer_unet",)

    trainer: str = "nnUNetTrainer_unet"
    """the trainer class; `-tr` overrides it"""
    train: UNetTrainConfig = field(default_factory=UNetTrainConfig)
