"""Quality against cost, with the experiments that no other one beats in both."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nnunetv2.study.report.figures.style import GREY, colours_of, panels


def cost_figure(
    quality: pd.DataFrame,
    costs: pd.DataFrame,
    labels: dict[str, str],
    fronts: dict[str, list[bool]],
    quality_label: str,
) -> Figure:
    """Draw a panel per cost.

    Args:
        quality: per experiment mean, low, high.
        costs: per experiment, a column per cost.
        labels: of the costs to draw.
        fronts: per cost, which experiments are on the Pareto front.
        quality_label: of the vertical axis.
    """
    figure, axes = panels(len(labels), 3.6, 2.9)
    for panel, (column, label) in zip(axes, labels.items(), strict=True):
        _draw(panel, quality, costs[column], fronts[column])
        panel.set_xlabel(label)
    axes[0].set_ylabel(quality_label)
    return figure


def _draw(panel: Axes, quality: pd.DataFrame, cost: pd.Series, front: list[bool]) -> None:
    colours = colours_of(list(quality.index))
    is_log = cost.min() > 0 and cost.max() / cost.min() > 20
    middle = (cost.min() * cost.max()) ** 0.5 if is_log else (cost.min() + cost.max()) / 2
    for experiment, row in quality.iterrows():
        x = cost[experiment]
        beside = {"xytext": (6, 5)} if x <= middle else {"xytext": (-6, 5), "ha": "right"}  # within the panel
        panel.plot((x, x), (row["low"], row["high"]), color=colours[experiment], linewidth=1.5)
        panel.plot(x, row["mean"], "o", color=colours[experiment], markersize=7)
        panel.annotate(str(experiment), (x, row["mean"]), textcoords="offset points", fontsize=8, **beside)
    best = sorted((cost[experiment], quality.loc[experiment, "mean"]) for experiment in quality.index[front])
    panel.step(*zip(*best, strict=True), where="post", color=GREY, linestyle="--", linewidth=1, zorder=0)
    if is_log:
        panel.set_xscale("log")
    panel.margins(x=0.2, y=0.15)
