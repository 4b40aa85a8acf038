"""The trainer of every ViT experiment: pretrained backbones, dense decoders, one output."""

import pydoc
from typing import Any, ClassVar

import torch
from torch import distributed as dist
from torch import nn

from nnunetv2.experiment.pretrained_weights import PretrainedWeights
from nnunetv2.model.backbone import weights_follow
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.vit_config import ViTnnUNetConfig
from nnunetv2.training.vit.architecture import describe_architecture
from nnunetv2.training.vit.experiment_trainer import ExperimentTrainer
from nnunetv2.training.vit.optimizer import parameter_groups
from nnunetv2.training.vit.targets import full_size_target
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

AUXILIARY_OUTPUTS = "auxiliary_outputs"  # the option of decoders that can be trained with deep supervision


class nnUNetTrainer_vit(ExperimentTrainer):
    """Trains the network that the plans describe, as their key `vit` says (see `ExperimentTrainer`)."""

    config_class: ClassVar[type] = ViTnnUNetConfig
    stored_config_class: ClassVar[type] = ViTnnUNetConfig
    default_config: ClassVar[str] = "upernet"

    def _apply_train_config(self) -> None:
        super()._apply_train_config()
        keywords = self.configuration_manager.network_arch_init_kwargs
        self.enable_deep_supervision = bool(keywords.get(AUXILIARY_OUTPUTS))

    def initialize(self) -> None:
        """Build network, optimiser and loss; at the start of a new training, load the pretrained weights."""
        super().initialize()
        model, network = self.config.model, self.plain_network
        if not self._restoring:
            self._load_pretrained_weights()
            architecture = describe_architecture(network, model.backbone, model.backbone_size)
            self.print_to_log_file(f"Architecture:\n{architecture}", also_print_to_console=False)
        input_norm = self.configuration_manager.network_arch_init_kwargs["input_norm"]
        self.print_to_log_file(
            f"Backbone mode: {self.config.mode}, feature layers: {network.feature_indices}, "
            f"input normalisation: {input_norm or 'none, channels pass as nnU-Net normalises them'}"
        )

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> nn.Module:
        """Build the network that the plans describe, as nnU-Net does; its weights are loaded afterwards.

        Raises:
            ExperimentError: the module that the plans name is not there.
        """
        name = configuration_manager.network_arch_class_name
        if pydoc.locate(name) is None:
            raise ValueError(
                f"the network {name!r} of the plans cannot be imported: its module must be on Python's path"
            )
        with weights_follow():
            return nnUNetTrainer.build_network_architecture(
                plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
            )

    def _load_pretrained_weights(self) -> None:
        network = self.plain_network
        if self.local_rank == 0:
            for line in PretrainedWeights(self.config.model).load(network):
                self.print_to_log_file(line)
        if self.is_ddp:  # one process reads or downloads, the others get its tensors
            for tensor in network.state_dict().values():
                dist.broadcast(tensor, src=0)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        train = self.config.train
        # LoRA's matrices start untrained and get the decoder's learning rate
        factor = train.backbone_lr_factor if self.config.mode == "full" else 1.0
        own_warmup = self._backbone_warmup() is not None
        return parameter_groups(
            self.plain_network, self.initial_lr, self.weight_decay, train.layer_decay, factor, own_warmup
        )

    def _backbone_warmup(self) -> float | None:
        # and warm up with it
        return super()._backbone_warmup() if self.config.mode == "full" else None

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        return self.plain_network.deep_supervision_scales if self.enable_deep_supervision else None

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Switch the further outputs on or off, as nnU-Net does; most decoders have one output, and none to switch."""
        if self.enable_deep_supervision:
            super().set_deep_supervision_enabled(enabled)

    def _images_and_target(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor | list[torch.Tensor]]:
        return super()._images_and_target(self._with_needed_targets(batch))

    def validation_step(self, batch: dict) -> dict:
        """Validate a batch as nnU-Net does.

        Args:
            batch: see `train_step`; of a list of targets the first one is taken, but under deep supervision all.
        """
        return super().validation_step(self._with_needed_targets(batch))

    def _with_needed_targets(self, batch: dict) -> dict:
        return batch if self.enable_deep_supervision else {**batch, "target": full_size_target(batch["target"])}
