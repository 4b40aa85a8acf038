"""The checkpoints of a fold: read safely, checked against a network, and each written in one piece."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinov3.files import replace_when_complete
from dinov3.weights.fitting import mismatches
from dinov3.weights.layouts import is_state
from dinov3.weights.reading import read_checkpoint
from nnunetv2.experiment.errors import ExperimentError

OPTION = "-pretrained_weights"


def read_fold_checkpoint(path: str | Path, source: str) -> dict[str, Any]:
    """Read a checkpoint of nnU-Net without executing anything that it contains.

    Args:
        path: the file.
        source: what asked for it, for the message.

    Raises:
        ExperimentError: it cannot be read, or is not a checkpoint of nnU-Net.
    """
    try:
        checkpoint = read_checkpoint(path)
    except ValueError as error:
        raise ExperimentError(f"{source}: {error}") from error
    if not isinstance(checkpoint, dict) or not is_state(checkpoint.get("network_weights")):
        raise ExperimentError(
            f"{source}: {path} is not a checkpoint of nnU-Net (it has no tensors under 'network_weights'); weights of "
            "a backbone alone go into model.checkpoint_path"
        )
    return checkpoint


def check_pretrained_checkpoint(path: str | Path, network: nn.Module) -> dict[str, Tensor]:
    """Check that a network can start from the weights of another training: the same tensors, each of the same shape.

    Args:
        path: a checkpoint of nnU-Net.
        network: the new network, on any device, also `meta`.

    Returns:
        The weights, on the CPU, by the names that the network has.

    Raises:
        ExperimentError: the checkpoint cannot be read, or names the tensors that do not fit.
    """
    checkpoint = read_fold_checkpoint(path, OPTION)
    weights = dict(checkpoint["network_weights"])
    for name, module in network.named_modules():
        if hasattr(module, "rename_former_names"):
            module.rename_former_names(weights, f"{name}.")
    problems = mismatches(weights, network.state_dict())
    if problems:
        raise ExperimentError(
            f"{OPTION}: {path} (of {checkpoint.get('trainer_name')}) does not fit the network of this "
            f"experiment: {'; '.join(problems)}"
        )
    return weights


@contextlib.contextmanager
def temporary_checkpoint(path: str | Path, weights: dict[str, Tensor]) -> Iterator[str]:
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


def write_checkpoint(path: Path, write: Callable[[str], None]) -> None:
    """Write a checkpoint to a temporary name and move it into place: a kill never leaves half a file.

    Args:
        path: of the checkpoint.
        write: writes it to the path that it is given.

    Raises:
        ExperimentError: it cannot be written, such as on a full disk; the existing one is unchanged.
    """
    try:
        with replace_when_complete(path) as temporary:
            write(str(temporary))
        if path.name == "checkpoint_best.pth":
            _resume_from(path)
    except (OSError, RuntimeError) as error:  # PyTorch's writer raises the latter
        free = shutil.disk_usage(path.parent).free / 2**20
        reason = f"{str(error).splitlines()[0]} ({free:.0f} MiB are free on the disk)"
        raise ExperimentError(f"cannot write {path}, the existing file is unchanged: {reason}") from error


def _resume_from(path: Path) -> None:
    # nnU-Net resumes from checkpoint_latest even where checkpoint_best is newer. A second name costs no space.
    latest = path.with_name("checkpoint_latest.pth")
    with contextlib.suppress(OSError), replace_when_complete(latest) as link:  # some file systems have no hard links
        os.link(path, link)


def remove_partial_checkpoints(folder: Path) -> None:
    """Remove the temporary files that a kill left behind."""
    for left_by_a_kill in folder.glob("checkpoint_*.pth.*tmp"):
        left_by_a_kill.unlink()
