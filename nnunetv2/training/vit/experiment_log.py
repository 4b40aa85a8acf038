"""What the log of a training says of its experiment."""

from dataclasses import asdict
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from nnunetv2.model.parameter_counts import count_parameters_per_part
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA


def log_experiment(trainer: nnUNetTrainer, network: nn.Module, config: Any) -> None:
    """Log the configuration, what nnU-Net's defaults and the machine decided, and the numbers of parameters.

    Args:
        trainer: an initialised trainer.
        network: its network, without wrappers.
        config: the resolved configuration.
    """
    log = trainer.print_to_log_file
    log(f"Experiment {trainer.plans_manager.plans_name}:\n{OmegaConf.to_yaml(asdict(config))}")
    log(f"Epochs: {trainer.num_epochs}, save_every: {trainer.save_every} (epochs between checkpoints)")
    if trainer.device.type == "cpu":
        log(f"Threads: {torch.get_num_threads()}, augmentation processes: {get_allowed_n_proc_DA()}")
    parts = count_parameters_per_part(network)
    for name, (total, trainable) in parts.items():
        log(f"Parameters of {name}: {total:,}, trainable {trainable:,}", add_timestamp=False)
    trainer.logger.update_config({"parameters": {name: list(counts) for name, counts in parts.items()}})
