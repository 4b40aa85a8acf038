"""The distribution of a metric over the cases, with a line per case from experiment to experiment."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from nnunetv2.study.report.figures.style import GREY, colours_of, panels, tilt_labels
from nnunetv2.study.report.metrics import Metric


def box_plots(values: dict[str, pd.DataFrame], metric: Metric, unit: str = "") -> Figure:
    """Draw a panel per class.

    Args:
        values: per class, case × experiment.
        metric: which it is.
        unit: of the metric, if it has one.
    """
    experiments = list(next(iter(values.values())).columns)
    figure, axes = panels(len(values), max(2.9, 0.75 * len(experiments) + 1.2), 3.2)
    for panel, (name, frame) in zip(axes, values.items(), strict=True):
        _draw(panel, frame)
        panel.set_title(name)
        tilt_labels(panel, experiments)
    axes[0].set_ylabel(f"{metric.label} ({unit})" if unit else metric.label)
    return figure


def _draw(panel: Axes, frame: pd.DataFrame) -> None:
    positions = range(1, len(frame.columns) + 1)
    lines = [np.column_stack([positions, row]) for row in frame.to_numpy()]
    panel.add_collection(LineCollection(lines, colors=GREY, alpha=min(0.5, 8 / len(frame)), linewidths=0.6, zorder=1))
    parts = panel.boxplot(
        [frame[experiment].dropna().to_numpy() for experiment in frame],
        tick_labels=list(frame.columns),
        widths=0.5,
        patch_artist=True,
        showmeans=True,
        medianprops={"color": "#111827", "linewidth": 1.4},
        meanprops={"marker": "D", "markerfacecolor": "white", "markeredgecolor": "#111827", "markersize": 4},
        flierprops={"marker": ".", "markersize": 3, "markeredgecolor": GREY},
    )
    for box, colour in zip(parts["boxes"], colours_of(list(frame.columns)).values(), strict=True):
        box.set(facecolor=colour, alpha=0.55, edgecolor=colour)
    panel.grid(False, axis="x")
