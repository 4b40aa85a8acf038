"""Learning-rate schedules: pure functions of the step, applied to every parameter group by its own factor.

A step is an epoch, or an iteration where a schedule counts these.
"""

import functools
import math
from collections.abc import Callable

from torch.optim import Optimizer

POLY_EXPONENT = 0.9
ONECYCLE_RISE, ONECYCLE_START, ONECYCLE_END = 0.3, 1 / 25, 1 / 25e4


def poly(progress: float, exponent: float = POLY_EXPONENT) -> float:
    """Polynomial decay: 1 at `progress` 0, 0 at 1 (nnU-Net's own)."""
    return (1 - progress) ** exponent


def cosine(progress: float) -> float:
    """Half a cosine: 1 at `progress` 0, 0 at 1 (Loshchilov and Hutter, SGDR, 2017, without restarts)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def one_cycle(step: int, num_steps: int, rise_steps: float) -> float:
    """Rise along half a cosine from 1/25 to 1, then fall to 1/250,000 (Smith and Topin, Super-Convergence, 2018)."""
    if step < rise_steps:
        return ONECYCLE_START + (1 - ONECYCLE_START) * (1 - cosine(step / rise_steps))
    progress = (step - rise_steps) / max(1, num_steps - rise_steps)
    return ONECYCLE_END + (1 - ONECYCLE_END) * cosine(min(1.0, progress))


def schedule_factor(
    name: str, step: float, num_steps: float, warmup_steps: float = 0, poly_exponent: float = POLY_EXPONENT
) -> float:
    """Learning-rate multiplier at a step.

    Args:
        name: `poly`, `cosine` or `onecycle`.
        step: 0-based epoch or iteration.
        num_steps: epochs or iterations of the training.
        warmup_steps: how many of them the factor rises linearly before `poly` and `cosine` start; for `onecycle` the
            length of its rise (0: 30% of the training).
        poly_exponent: power of `poly`.

    Returns:
        A factor in [0, 1].
    """
    if name == "onecycle":
        return one_cycle(step, num_steps, warmup_steps or round(ONECYCLE_RISE * num_steps))
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    decay = {"poly": functools.partial(poly, exponent=poly_exponent), "cosine": cosine}[name]
    return decay(min(1.0, (step - warmup_steps) / (num_steps - warmup_steps)))


def backbone_factor(
    name: str,
    step: float,
    num_steps: float,
    warmup_steps: float,
    backbone_warmup_steps: float,
    poly_exponent: float = POLY_EXPONENT,
) -> float:
    """Learning-rate multiplier of a backbone that stands still while the new parts warm up, and then does so itself.

    This is the two-stage warm-up of EoMT (Kerssies et al., 2025, https://arxiv.org/abs/2503.19108): the backbone's own
    schedule starts where the warm-up of the others ends, and ends with the training.

    Args:
        name: `poly` or `cosine`.
        step: 0-based epoch or iteration.
        num_steps: epochs or iterations of the training.
        warmup_steps: warm-up of the new parts.
        backbone_warmup_steps: that of the backbone, which follows.
        poly_exponent: power of `poly`.

    Returns:
        A factor in [0, 1], 0 before `warmup_steps`.
    """
    if step < warmup_steps:
        return 0.0
    own_step, own_steps = step - warmup_steps, num_steps - warmup_steps
    return schedule_factor(name, own_step, own_steps, backbone_warmup_steps, poly_exponent)


class EpochSchedule:
    """Sets the learning rate of every parameter group to its `initial_lr` times a factor of the epoch.

    It has no state: a resumed training has the learning rate of an uninterrupted one.

    Args:
        optimizer: its groups carry `initial_lr`, those of the backbone `is_backbone` where they have a factor of
            their own.
        factor: epoch to factor.
        of_backbone: epoch to factor of the backbone's groups; by default the same.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        factor: Callable[[int], float],
        of_backbone: Callable[[int], float] | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.factor = factor
        self.of_backbone = of_backbone or factor
        self.step(0)

    def step(self, epoch: int, iteration: int = 0) -> None:
        """Set the learning rates of an epoch (0-based)."""
        for group, rate in zip(self.optimizer.param_groups, self.rates(epoch, iteration), strict=True):
            group["lr"] = rate

    def rates(self, epoch: int, iteration: int = 0) -> list[float]:
        """The learning rate of every parameter group in an iteration of an epoch (both 0-based)."""
        step = self._steps_before(epoch, iteration)
        return [
            group["initial_lr"] * (self.of_backbone if group.get("is_backbone") else self.factor)(step)
            for group in self.optimizer.param_groups
        ]

    def _steps_before(self, epoch: int, _iteration: int) -> int:
        return epoch


class IterationSchedule(EpochSchedule):
    """Sets learning rates by factors of the iteration, counted from the start of the training.

    Args:
        optimizer: see `EpochSchedule`.
        iterations_per_epoch: iterations of an epoch.
        factor: iteration to factor.
        of_backbone: iteration to factor of the backbone's groups; by default the same.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        iterations_per_epoch: int,
        factor: Callable[[int], float],
        of_backbone: Callable[[int], float] | None = None,
    ) -> None:
        self.iterations_per_epoch = iterations_per_epoch
        super().__init__(optimizer, factor, of_backbone)

    def _steps_before(self, epoch: int, iteration: int) -> int:
        return epoch * self.iterations_per_epoch + iteration


def create_schedule(
    optimizer: Optimizer,
    name: str,
    interval: str,
    num_epochs: int,
    iterations_per_epoch: int,
    warmup_epochs: float,
    backbone_warmup_epochs: float | None,
    poly_exponent: float,
) -> EpochSchedule:
    """Create the schedule of a training.

    Args:
        optimizer: see `EpochSchedule`.
        name: see `schedule_factor`.
        interval: `epoch` or `iteration`: how often learning rates change.
        num_epochs: epochs of the training.
        iterations_per_epoch: iterations of an epoch.
        warmup_epochs: warm-up; fractions count where learning rates change with the iteration.
        backbone_warmup_epochs: that of the backbone, after the other (see `backbone_factor`); None: the same.
        poly_exponent: power of `poly`.
    """
    steps = 1 if interval == "epoch" else iterations_per_epoch  # per epoch
    shared = {
        "num_steps": num_epochs * steps,
        "warmup_steps": warmup_epochs * steps,
        "poly_exponent": poly_exponent,
    }
    factor, of_backbone = functools.partial(schedule_factor, name, **shared), None
    if backbone_warmup_epochs is not None:
        own = {"backbone_warmup_steps": backbone_warmup_epochs * steps}
        of_backbone = functools.partial(backbone_factor, name, **shared, **own)
    if interval == "epoch":
        return EpochSchedule(optimizer, factor, of_backbone)
    return IterationSchedule(optimizer, iterations_per_epoch, factor, of_backbone)
