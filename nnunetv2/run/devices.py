"""The devices that the commands can run on."""

from typing import TYPE_CHECKING

from nnunetv2.experiment.errors import ExperimentError

if TYPE_CHECKING:
    import torch

DEVICES = ("cuda", "cpu", "mps")


def find_device(name: str, num_gpus: int = 1) -> "torch.device":
    """Return a device of this machine.

    Args:
        name: one of `DEVICES`.
        num_gpus: number of GPUs that are needed, where it is `cuda`.

    Raises:
        ExperimentError: this machine has no such device, or too few GPUs.
    """
    import torch  # takes seconds, which a command that is refused before need not spend

    if name == "cuda" and torch.cuda.device_count() < num_gpus:
        found = torch.cuda.device_count()
        raise ExperimentError(
            f"-device cuda with {num_gpus} GPUs: PyTorch finds {found} usable GPUs here"
            + ("; use -device cpu" if found == 0 else "")
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise ExperimentError("-device mps: PyTorch finds no such device here; use -device cpu")
    return torch.device(name)
