"""The curves of a training."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dinov3.files import replace_when_complete

SMOOTHING = 0.02  # share of the steps that an average is taken over


def draw_progress(
    losses: Iterable[Mapping[str, Any]], evaluations: Iterable[Mapping[str, Any]], metric: str, path: Path
) -> None:
    """Write a picture of loss, learning rate and a metric over the steps.

    Args:
        losses: per step `step`, `loss` and `learning_rate`.
        evaluations: per evaluation `step` and `metrics`, of which None are left out.
        metric: name of the metric.
        path: of the picture.
    """
    columns = np.array([(row["step"], row["loss"], row["learning_rate"]) for row in losses]).reshape(-1, 3)
    steps, loss, rate = columns.T
    points = [(row["step"], row["metrics"][metric]) for row in evaluations if row["metrics"][metric] is not None]
    figure = Figure(figsize=(8, 9), layout="constrained")  # not pyplot's, which keeps every figure
    of_loss, of_rate, of_metric = figure.subplots(3, sharex=True)
    of_loss.plot(steps, loss, color="tab:blue", alpha=0.3, linewidth=0.8, label="loss")
    window = max(1, round(SMOOTHING * len(loss)))
    if window > 1:
        average = np.convolve(loss, np.full(window, 1 / window), mode="valid")
        of_loss.plot(steps[window - 1 :], average, color="tab:blue", label=f"average of {window} steps")
    of_loss.set_ylabel("training loss")
    of_loss.legend()
    of_rate.plot(steps, rate, color="tab:orange")
    of_rate.set_ylabel("learning rate")
    of_metric.plot(*np.array(points).reshape(-1, 2).T, color="tab:green", marker="o")
    of_metric.set(ylabel=metric, xlabel="step")
    for axes in (of_loss, of_rate, of_metric):
        axes.grid(alpha=0.3)
    with replace_when_complete(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
