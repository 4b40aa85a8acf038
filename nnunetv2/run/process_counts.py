"""The numbers of processes that nnU-Net reads from the environment, without a check, when its modules are imported."""

import os

from nnunetv2.experiment.errors import ExperimentError

# Variable to the least value: no process for augmentation means that the training augments by itself.
LEAST_COUNTS = {"nnUNet_n_proc_DA": 0, "nnUNet_def_n_proc": 1}


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
