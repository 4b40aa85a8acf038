"""Learning-rate schedules: pure functions of the epoch, applied to every parameter group by its own factor."""

import math
from collections.abc import Callable

from torch.optim import Optimizer

POLY_EXPONENT = 0.9
ONECYCLE_RISE, ONECYCLE_START, ONECYCLE_END = 0.3, 1 / 25, 1 / 25e4


def poly(progress: float) -> float:
    """Polynomial decay: 1 at `progress` 0, 0 at 1 (nnU-Net's own)."""
    return (1 - progress) ** POLY_EXPONENT


def cosine(progress: float) -> float:
    """Half a cosine: 1 at `progress` 0, 0 at 1 (Loshchilov and Hutter, SGDR, 2017, without restarts)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def one_cycle(epoch: int, num_epochs: int, rise_epochs: int) -> float:
    """Rise along half a cosine from 1/25 to 1, then fall to 1/250,000 (Smith and Topin, Super-Convergence, 2018)."""
    if epoch < rise_epochs:
        return ONECYCLE_START + (1 - ONECYCLE_START) * (1 - cosine(epoch / rise_epochs))
    progress = (epoch - rise_epochs) / max(1, num_epochs - rise_epochs)
    return ONECYCLE_END + (1 - ONECYCLE_END) * cosine(progress)


def schedule_factor(name: str, epoch: int, num_epochs: int, warmup_epochs: int = 0) -> float:
    """Learning-rate multiplier at an epoch.

    Args:
        name: `poly`, `cosine` or `onecycle`.
        epoch: 0-based epoch.
        num_epochs: epochs of the training.
        warmup_epochs: epochs of linear rise before `poly` and `cosine` start; for `onecycle` the length of its rise
            (0: 30% of the training).

    Returns:
        A factor in [0, 1].
    """
    if name == "onecycle":
        return one_cycle(epoch, num_epochs, warmup_epochs or round(ONECYCLE_RISE * num_epochs))
    if epoch < warmup_epochs:
        return (epoch + 1) / (warmup_epochs + 1)
    decay = {"poly": poly, "cosine": cosine}[name]
    return decay(min(1.0, (epoch - warmup_epochs) / (num_epochs - warmup_epochs)))


class EpochSchedule:
    """Sets the learning rate of every parameter group to its `initial_lr` times a factor of the epoch.

    It has no state: a resumed training has the learning rate of an uninterrupted one.

    Args:
        optimizer: its groups carry `initial_lr`.
        factor: epoch to factor.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float]) -> None:
        self.optimizer = optimizer
        self.factor = factor
        self.step(0)

    def step(self, epoch: int) -> None:
        """Set the learning rates of an epoch (0-based)."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.factor(epoch)
