"""Processes and threads: what a training on the CPU chooses, and whether what the user chose is possible.

Nothing heavy is loaded: the variables must be set before torch is.
"""

import os

from nnunetv2.experiment.cores import usable_cores
from nnunetv2.experiment.errors import ExperimentError

MAX_AUGMENTATION_PROCESSES = 12  # nnU-Net's own number
MAX_EXPORT_PROCESSES = 8  # likewise
CORES_PER_AUGMENTATION_PROCESS = 8
# What nnU-Net reads without a check, and the least value; without a process for augmentation the training augments
LEAST_COUNTS = {"nnUNet_n_proc_DA": 0, "nnUNet_def_n_proc": 1}


def split_cores(cores: int) -> tuple[int, int]:
    """Share cores between a training's two parts.

    Augmenting a batch takes 1 to 5% of the processor time of a training step on it, so that one process is enough for
    several cores. On few cores it runs beside PyTorch's threads: one thread less would cost more.

    Returns:
        The number of PyTorch's threads, and of augmentation processes.
    """
    processes = min(max(1, cores // CORES_PER_AUGMENTATION_PROCESS), MAX_AUGMENTATION_PROCESSES)
    threads = cores - processes if cores >= CORES_PER_AUGMENTATION_PROCESS else cores
    return threads, processes


def share_cores() -> int:
    """Set what OpenMP and nnU-Net read when they are loaded, unless the user has, and return PyTorch's threads."""
    cores = usable_cores()
    threads, processes = split_cores(cores)
    # Threads that spin while they wait take the cores from whatever else runs, augmentation included.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("nnUNet_n_proc_DA", str(processes))
    os.environ.setdefault("nnUNet_def_n_proc", str(min(cores, MAX_EXPORT_PROCESSES)))
    own = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # a list names one number per nested level
    return max(1, int(own)) if own.isdecimal() else threads


def check_process_counts() -> None:
    """Check the variables that say how many processes nnU-Net starts.

    Raises:
        ExperimentError: names the variable, its value and the values allowed.
    """
    for variable, least in LEAST_COUNTS.items():
        value = os.environ.get(variable)
        if value is not None and not _is_count(value, least):
            raise ExperimentError(
                f"the environment variable {variable} must be a whole number of at least {least}, found {value!r}"
            )


def _is_count(value: str, least: int) -> bool:
    try:
        return int(value) >= least
    except ValueError:
        return False
