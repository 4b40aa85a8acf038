"""The workers of a study on this machine: how many, and the GPUs or the cores that each has."""

import os

from nnunetv2.experiment.cores import usable_cores
from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.run.cpu_cores import MAX_AUGMENTATION_PROCESSES, MAX_EXPORT_PROCESSES, split_cores
from nnunetv2.run.devices import find_device
from nnunetv2.study.config import StudyConfig

VISIBLE = "CUDA_VISIBLE_DEVICES"


def local_workers(study: StudyConfig, number: int | None) -> list[dict[str, str]]:
    """Return the environment variables of each worker's trainings.

    Args:
        study: says on which device to train, and on how many GPUs a training runs.
        number: of workers; None: as many as the visible GPUs suffice for, on other devices one.

    Raises:
        ExperimentError: there are too few GPUs for one training, or no worker.
    """
    if number is not None and number < 1:
        raise ExperimentError(f"--workers must be at least 1, found {number}")
    if study.device != "cuda":
        return [cores_of(usable_cores() // (number or 1), study.device)] * (number or 1)
    find_device(study.device, study.num_gpus)
    gpus, size = visible_gpus(), study.num_gpus
    groups = [gpus[i : i + size] for i in range(0, len(gpus) - size + 1, size)]
    number = number or len(groups)
    cores = cores_of(usable_cores() // number, study.device)
    return [{VISIBLE: ",".join(groups[i % len(groups)]), **cores} for i in range(number)]


def visible_gpus() -> list[str]:
    """Numbers or names of the GPUs that this process may use."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get(VISIBLE)
    return named.split(",")[:count] if named else [str(i) for i in range(count)]


def cores_of(cores: int, device: str) -> dict[str, str]:
    """Return the variables of a training that has some of a machine's cores, but for those that the user has set.

    Args:
        cores: how many.
        device: on a GPU all of them augment, on the CPU they are shared as `nnUNetv2_train_vit` does it.
    """
    cores = max(1, cores)
    if device == "cpu":
        threads, processes = split_cores(cores)
        counts = {"OMP_NUM_THREADS": threads, "nnUNet_def_n_proc": min(cores, MAX_EXPORT_PROCESSES)}
    else:
        counts, processes = {}, min(cores, MAX_AUGMENTATION_PROCESSES)
    counts["nnUNet_n_proc_DA"] = processes
    return {name: str(count) for name, count in counts.items() if name not in os.environ}
