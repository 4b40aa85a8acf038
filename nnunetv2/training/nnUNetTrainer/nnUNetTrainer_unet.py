"""The trainer of a U-Net experiment: nnU-Net's network and loss with deep supervision."""

from typing import ClassVar

from nnunetv2.training.nnUNetTrainer.unet_config import UNetConfig
from nnunetv2.training.vit.experiment_trainer import ExperimentTrainer


class nnUNetTrainer_unet(ExperimentTrainer):
    """Trains the U-Net of nnU-Net's plans, as their key `vit` says (see `ExperimentTrainer`)."""

    config_class: ClassVar[type] = UNetConfig
    stored_config_class: ClassVar[type] = UNetConfig
    default_config: ClassVar[str] = "unet"
