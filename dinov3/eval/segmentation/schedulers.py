"""Learning-rate schedules with a warm-up, as functions of the number of optimizer steps."""

import inspect
import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "a name"}  # of options, in words
BETA1_RANGE = (0.85, 0.95)  # of the one-cycle schedule: momentum at the start and at the end of the annealing
DIV_FACTOR = 25.0  # of the one-cycle schedule: ratio of the peak rate to the initial rate


def anneal(start: float, end: float, progress: float, strategy: str) -> float:
    """Value between `start` (progress 0) and `end` (1), along half a cosine (`cos`) or a line (`linear`)."""
    remaining = (1 + math.cos(math.pi * progress)) / 2 if strategy == "cos" else 1 - progress
    return end + (start - end) * remaining


class WarmupLR(LRScheduler, ABC):
    """A schedule that is multiplied by a linear warm-up.

    A parameter group has `lr` times its learning-rate multiplier: its initial rate divided by the optimizer's default.

    Args:
        optimizer: the optimizer whose rates and, with some schedules, momentum are set.
        lr: peak rate.
        total_iter: number of steps of the training.
        warmup_iters: number of steps of the warm-up.
        warmup_ratio: factor on the rate at the first step of the warm-up.

    Raises:
        ValueError: the warm-up is not shorter than the training.
    """

    def __init__(
        self, optimizer: Optimizer, lr: float, total_iter: int, warmup_iters: int = 0, warmup_ratio: float = 1e-6
    ) -> None:
        if not 0 <= warmup_iters < total_iter:
            raise ValueError(
                f"warmup_iters must be at least 0 and below total_iter ({total_iter}), found {warmup_iters}"
            )
        self.lr, self.total_iter = lr, total_iter
        self.warmup_iters, self.warmup_ratio = warmup_iters, warmup_ratio
        super().__init__(optimizer)

    @abstractmethod
    def decay(self, step: int) -> float:
        """Factor on the peak rate after `step` steps, without the warm-up."""

    def warmup(self, step: int) -> float:
        """Factor of the warm-up after `step` steps; 1 once it is over."""
        if step >= self.warmup_iters:
            return 1.0
        return 1 - (1 - step / self.warmup_iters) * (1 - self.warmup_ratio)

    def get_lr(self) -> list[float]:
        """Rate of every parameter group at the current step."""
        rate = self.lr * self.warmup(self.last_epoch) * self.decay(self.last_epoch)
        default = self.optimizer.defaults["lr"]
        return [rate * initial / default for initial in self.base_lrs]


class WarmupOneCycleLR(WarmupLR):
    """One-cycle schedule (Smith and Topin, "Super-Convergence", 2018, https://arxiv.org/abs/1708.07120).

    The warm-up multiplies a linear decay that would reach 0 at the end of the training. After the warm-up the rate
    follows the annealing, whose step 0 is the start of the training. As in the reference, the rate therefore jumps up
    slightly at the end of the warm-up.

    Args:
        optimizer, lr, total_iter, warmup_iters, warmup_ratio: see `WarmupLR`.
        pct_start: share of the training in which the rate rises from 1/25 of its peak, before it falls.
        anneal_strategy: `cos` or `linear`.
        final_div_factor: ratio of the initial rate, 1/25 of the peak, to the final rate; infinity ends at 0.
        use_beta1: whether to set Adam's beta1 too: 0 during the warm-up, then annealed from 0.85 to 0.95.
        update_momentum: whether to set `momentum` in the same way, for an optimizer such as SGD.

    Raises:
        ValueError: a value is impossible, or the optimizer has no beta1 or momentum to set.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr: float,
        total_iter: int,
        warmup_iters: int = 0,
        warmup_ratio: float = 1e-6,
        pct_start: float = 0.0,
        anneal_strategy: str = "cos",
        final_div_factor: float = 1000.0,
        use_beta1: bool = True,
        update_momentum: bool = False,
    ) -> None:
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(f"anneal_strategy must be cos or linear, found {anneal_strategy!r}")
        if not 0 <= pct_start < 1:
            raise ValueError(f"pct_start must be in [0, 1), found {pct_start}")
        for used, key, name in ((use_beta1, "betas", "use_beta1"), (update_momentum, "momentum", "update_momentum")):
            if used and key not in optimizer.defaults:
                raise ValueError(f"{name} needs an optimizer with {key}, found {type(optimizer).__name__}")
        self.pct_start, self.anneal_strategy = pct_start, anneal_strategy
        if not final_div_factor > 0:
            raise ValueError(f"final_div_factor must be above 0, found {final_div_factor}")
        self.final = 1 / (DIV_FACTOR * final_div_factor)
        self.use_beta1, self.update_momentum = use_beta1, update_momentum
        super().__init__(optimizer, lr, total_iter, warmup_iters, warmup_ratio)

    def decay(self, step: int) -> float:
        """Factor on the peak rate after `step` steps, without the warm-up."""
        if step < self.warmup_iters:
            return 1 - step / self.total_iter
        ahead = 1 if self.anneal_strategy == "cos" else 0  # the reference is one step ahead with the cosine only
        peak, end = self.pct_start * self.total_iter - ahead, self.total_iter - ahead
        if step < peak:
            return anneal(1 / DIV_FACTOR, 1, step / peak, self.anneal_strategy)
        return anneal(1, self.final, (step - peak) / (end - peak), self.anneal_strategy)

    def momentum(self, step: int) -> float:
        """Momentum (beta1) after `step` steps."""
        if step < self.warmup_iters:
            return 0.0
        progress = (step - self.warmup_iters) / (self.total_iter - self.warmup_iters)
        return anneal(*BETA1_RANGE, progress, self.anneal_strategy)

    def step(self, epoch: int | None = None) -> None:
        """Advance by one step, and set the rates and the momentum."""
        super().step(epoch)
        for group in self.optimizer.param_groups:
            if self.use_beta1:
                group["betas"] = (self.momentum(self.last_epoch), *group["betas"][1:])
            if self.update_momentum:
                group["momentum"] = self.momentum(self.last_epoch)


class WarmupMultiStepLR(WarmupLR):
    """Multi-step decay: the rate drops at each milestone.

    Args:
        optimizer, lr, total_iter, warmup_iters, warmup_ratio: see `WarmupLR`.
        milestones: numbers of steps at which the rate is multiplied by `gamma`; by default 80% and 90% of the training.
        gamma: the factor.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr: float,
        total_iter: int,
        warmup_iters: int = 0,
        warmup_ratio: float = 1e-6,
        milestones: Sequence[int] | None = None,
        gamma: float = 0.1,
    ) -> None:
        default = (round(0.8 * total_iter), round(0.9 * total_iter))
        self.milestones = sorted(default if milestones is None else milestones)
        self.gamma = gamma
        super().__init__(optimizer, lr, total_iter, warmup_iters, warmup_ratio)

    def decay(self, step: int) -> float:
        """Factor on the peak rate after `step` steps, without the warm-up."""
        return self.gamma ** bisect_right(self.milestones, step)


class WarmupPolyLR(WarmupLR):
    """Polynomial decay to 0 (Chen et al., "DeepLab", 2017, https://arxiv.org/abs/1606.00915).

    Args:
        optimizer, lr, total_iter, warmup_iters, warmup_ratio: see `WarmupLR`.
        power: exponent of the remaining share of the training.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr: float,
        total_iter: int,
        warmup_iters: int = 0,
        warmup_ratio: float = 1e-6,
        power: float = 0.9,
    ) -> None:
        self.power = power
        super().__init__(optimizer, lr, total_iter, warmup_iters, warmup_ratio)

    def decay(self, step: int) -> float:
        """Factor on the peak rate after `step` steps, without the warm-up."""
        return max(0.0, 1 - step / self.total_iter) ** self.power


SCHEDULERS: dict[str, type[WarmupLR]] = {
    kind.__name__: kind for kind in (WarmupOneCycleLR, WarmupMultiStepLR, WarmupPolyLR)
}


def build_scheduler(
    scheduler_type: str,
    *,
    optimizer: Optimizer,
    lr: float,
    total_iter: int,
    constructor_kwargs: Mapping[str, Any] | None = None,
) -> WarmupLR:
    """Create a schedule.

    Args:
        scheduler_type: `WarmupOneCycleLR`, `WarmupMultiStepLR` or `WarmupPolyLR`.
        optimizer: the optimizer whose rates are set.
        lr: peak rate.
        total_iter: number of steps of the training.
        constructor_kwargs: further arguments of that class; numbers may be strings, as YAML reads `inf`.

    Raises:
        ValueError: the schedule or an option is unknown, or a value is impossible.
    """
    if scheduler_type not in SCHEDULERS:
        raise ValueError(f"the scheduler must be one of {', '.join(SCHEDULERS)}, found {scheduler_type!r}")
    kind, options = SCHEDULERS[scheduler_type], dict(constructor_kwargs or {})
    allowed = dict(list(inspect.signature(kind).parameters.items())[3:])
    for key, value in options.items():
        if key not in allowed:
            raise ValueError(f"{scheduler_type} has no option {key!r}; allowed: {', '.join(allowed)}")
        options[key] = _converted(key, value, allowed[key].annotation)
    return kind(optimizer, lr, total_iter, **options)


def _converted(key: str, value: Any, kind: Any) -> Any:
    """Convert the value of an option to its annotated type.

    Raises:
        ValueError: it has another type, or is NaN.
    """
    needed = ValueError(f"{key} must be {KINDS.get(kind, 'a list of integers')}, found {value!r}")
    if isinstance(value, bool) and kind is not bool:  # to pydantic, true is 1
        raise needed
    try:
        converted = TypeAdapter(kind).validate_python(value)
    except ValidationError:
        raise needed from None
    if kind is float and math.isnan(converted):
        raise needed
    return converted
