"""The checkpoint of a former training that `-pretrained_weights` starts from, or `--c` goes on with."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinov3.weights.fitting import misfits
from dinov3.weights.layouts import is_state
from dinov3.weights.reading import read_checkpoint
from nnunetv2.model.segformer_head import SegFormerHead, rename_former_projections
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
    if not isinstance(checkpoint, dict) or not is_state(checkpoint.get("network_weights")):
        raise ExperimentError(
            f"{source}: {path} is no checkpoint of nnU-Net (it has no tensors under 'network_weights'); weights of a "
            "backbone alone go into model.checkpoint_path"
        )
    return checkpoint


def check_former_training(path: str | Path, network: nn.Module) -> dict[str, Tensor]:
    """Check that a network can start from a former training: the same tensors, each of the same shape.

    Args:
        path: a checkpoint of nnU-Net.
        network: the new network, on any device, also `meta`.

    Returns:
        The weights, on the CPU, by the names that the network has.

    Raises:
        ExperimentError: the checkpoint cannot be read, or names the tensors that do not fit.
    """
    checkpoint = read_former_training(path, OPTION)
    weights = dict(checkpoint["network_weights"])
    for name, module in network.named_modules():
        if isinstance(module, SegFormerHead):
            rename_former_projections(weights, f"{name}.")
    problems = misfits(weights, network.state_dict())
    if problems:
        raise ExperimentError(
            f"{OPTION}: {path} (of {checkpoint.get('trainer_name')}) does not fit the network of this "
            f"experiment: {'; '.join(problems)}"
        )
    return weights


@contextlib.contextmanager
def handed_on(path: str | Path, weights: dict[str, Tensor]) -> Iterator[str]:
    """Write weights that were checked to a temporary checkpoint, for nnU-Net to read.

    nnU-Net reads a checkpoint as it is: with what it may hold beside the weights, and onto the GPU it was saved from.

    Args:
        path: the file that they come from, for the name.
        weights: of the network.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / Path(path).name
        torch.save({"network_weights": weights}, copy)
        yield str(copy)
