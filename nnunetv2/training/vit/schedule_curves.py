"""A picture of what a training will change from step to step: learning rates, and how likely masks apply."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from torch.optim import Optimizer

from dinov3.files import replace_when_complete

MAX_POINTS = 500  # of a curve

Curves = dict[str, list[float]]


def sampled_steps(num_epochs: int, iterations_per_epoch: int) -> list[tuple[int, int]]:
    """Pairs of epoch and iteration, at most `MAX_POINTS`, evenly spaced over a training from its first to its last."""
    last = num_epochs * iterations_per_epoch - 1
    count = min(last + 1, MAX_POINTS)
    steps = [i * last // max(1, count - 1) for i in range(count)]
    return [divmod(step, iterations_per_epoch) for step in steps]


def named_groups(optimizer: Optimizer) -> dict[str, int]:
    """The parameter groups whose learning rates are drawn: name to index; of the backbone's the one that learns most.

    With layer decay the backbone has a group per layer, whose learning rates are multiples of one another.
    """
    rates = {i: group["initial_lr"] for i, group in enumerate(optimizer.param_groups) if group.get("is_backbone")}
    if not rates:
        return {"all that trains": 0}
    return {"decoder": 0, "backbone": max(rates, key=rates.__getitem__)}


def schedule_figure(epochs: Sequence[float], rates: Curves, probabilities: Curves) -> Figure:
    """Draw curves over the epochs: learning rates, and beside them, if there are any, probabilities.

    Args:
        epochs: per point of a curve the epoch, with the part of it that is over.
        rates: learning rates by name.
        probabilities: in [0, 1] by name.
    """
    panels = {"learning rate": rates, "probability that a mask applies": probabilities}
    panels = {title: curves for title, curves in panels.items() if curves}
    figure = Figure(figsize=(7 * len(panels), 5), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, (title, curves) in zip(axes, panels.items(), strict=True):
        for name, values in curves.items():
            panel.plot(epochs, values, label=name)
        panel.set_title(title, fontsize=12)
        panel.set_xlabel("epoch", fontsize=12)
        panel.tick_params(labelsize=11)
        panel.legend(fontsize=11)
    return figure


def draw_schedule(
    path: Path,
    num_epochs: int,
    iterations_per_epoch: int,
    groups: dict[str, int],
    rates_at: Callable[[int, int], Sequence[float]],
    probabilities_at: Callable[[int, int], Sequence[float]],
) -> None:
    """Write the picture.

    Args:
        path: of the picture.
        num_epochs: epochs of the training.
        iterations_per_epoch: iterations of an epoch.
        groups: see `named_groups`.
        rates_at: epoch and iteration to the learning rates of all parameter groups.
        probabilities_at: epoch and iteration to the probabilities of the masked blocks, which may be none.
    """
    steps = sampled_steps(num_epochs, iterations_per_epoch)
    epochs = [epoch + iteration / iterations_per_epoch for epoch, iteration in steps]
    found = [rates_at(*step) for step in steps]
    rates = {name: [rate[i] for rate in found] for name, i in groups.items()}
    blocks = zip(*(probabilities_at(*step) for step in steps), strict=True)
    probabilities = {f"block {i}": list(values) for i, values in enumerate(blocks, start=1)}
    with replace_when_complete(path) as temporary:
        schedule_figure(epochs, rates, probabilities).savefig(temporary, format="png", dpi=80)
