"""The checkpoint of a former training that `-pretrained_weights` starts from, or `--c` goes on with."""

from pathlib import Path
from typing import Any

from torch import nn

from dinov3.weights.fitting import misfits
from dinov3.weights.reading import read_checkpoint
from nnunetv2.training.experiment.errors import ExperimentError

OPTION = "-pretrained_weights"


def read_former_training(path: str | Path, source: str) -> dict[str, Any]:
    """Read a checkpoint of nnU-Net without executing anything that it contains.

    Args:
        path: the file.
        source: what asked for it, for the message.

    Raises:
        ExperimentError: it cannot be read, or is no checkpoint of nnU-Net.
    """
    try:
        checkpoint = read_checkpoint(path)
    except ValueError as error:
        raise ExperimentError(f"{source}: {error}") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("network_weights"), dict):
        raise ExperimentError(
            f"{source}: {path} is no checkpoint of nnU-Net (it has no 'network_weights'); weights of a "
            "backbone alone go into model.checkpoint_path"
        )
    return checkpoint


def check_former_training(path: str | Path, network: nn.Module) -> None:
    """Check that a network can start from a former training: the same tensors, each of the same shape.

    Args:
        path: a checkpoint of nnU-Net.
        network: the new network, on any device, also `meta`.

    Raises:
        ExperimentError: the checkpoint cannot be read, or names the tensors that do not fit.
    """
    checkpoint = read_former_training(path, OPTION)
    problems = misfits(checkpoint["network_weights"], network.state_dict())
    if problems:
        raise ExperimentError(
            f"{OPTION}: {path} (of {checkpoint.get('trainer_name')}) does not fit the network of this "
            f"experiment: {'; '.join(problems)}"
        )
