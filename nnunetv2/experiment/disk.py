"""The space that checkpoints need on the disk, told before anything is trained."""

import shutil
from pathlib import Path
from typing import Any

from torch import nn

from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.experiment.memory import FLOAT32_BYTES, GIB, OPTIMIZER_STATES
from nnunetv2.experiment.plans import EXPERIMENT_KEY
from nnunetv2.model.parameter_counts import count_parameters


def checkpoint_bytes(configuration: dict[str, Any], network: nn.Module) -> int:
    """Return the size of one checkpoint: the parameters, and the optimiser's states of those that train.

    Args:
        configuration: a derived configuration.
        network: its network, on any device, also `meta`.
    """
    total, trainable = count_parameters(network)
    states = OPTIMIZER_STATES[configuration[EXPERIMENT_KEY]["train"]["optimizer"]]
    return (total + states * trainable) * FLOAT32_BYTES


def check_disk_space(folder: Path, needed: int) -> None:
    """Check that checkpoints have room on the disk of a folder, which need not exist.

    Args:
        folder: where they will be written.
        needed: bytes.

    Raises:
        ExperimentError: names the need and what is free.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ExperimentError(
            f"the checkpoints need {needed / GIB:,.1f} GiB, {existing} has {free / GIB:,.1f} GiB free"
        )
