"""Learning curves of all runs, and quality over the number of training cases."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nnunetv2.study.report.figures.style import lines_of, panels
from nnunetv2.study.report.learning_curves import COLUMNS

Curves = list[tuple[str, pd.DataFrame]]


def learning_figure(curves: dict[str, Curves], experiments: list[str]) -> Figure:
    """Draw pseudo Dice, validation and training loss: a thin line per run, and a thick one per experiment's mean.

    Args:
        curves: by number of training cases in words, which have a row of panels each: experiment and curve of every
            run. A single one needs no words.
        experiments: in their order.
    """
    columns = list(reversed(COLUMNS))
    figure, axes = panels(len(columns) * len(curves), 3.6, 2.7, len(columns))
    cells = [(size, column) for size in curves for column in columns]
    for panel, (size, column) in zip(axes, cells, strict=True):
        _draw_runs(panel, curves[size], column, experiments)
        panel.set_title(f"{column}, {size}" if size else column)
    for panel in axes[-len(columns) :]:
        panel.set_xlabel("epoch")
    _legend(figure, axes)
    return figure


def _draw_runs(panel: Axes, curves: Curves, column: str, experiments: list[str]) -> None:
    for experiment, look in lines_of(experiments).items():
        runs = [curve[column] for name, curve in curves if name == experiment and len(curve)]
        line = {"color": look["color"], "linestyle": look["linestyle"]}
        for run in runs:
            panel.plot(run.index, run, **line, linewidth=0.6, alpha=0.45)
        if runs:
            mean = pd.concat(runs, axis=1).mean(axis=1)
            panel.plot(mean.index, mean, **line, linewidth=1.8, label=experiment)


def data_size_figure(summary: pd.DataFrame, experiments: list[str], sizes: list[int], label: str) -> Figure:
    """Draw the mean with its interval over the number of training cases, a panel per class.

    Args:
        summary: columns experiment, class, cases (number of training cases), mean, low, high.
        experiments: in their order.
        sizes: the numbers, in ascending order.
        label: of the metric.
    """
    names = list(dict.fromkeys(summary["class"]))
    figure, axes = panels(len(names), 3.4, 2.9)
    for panel, name in zip(axes, names, strict=True):
        for experiment, look in lines_of(experiments).items():
            rows = summary[(summary["class"] == name) & (summary["experiment"] == experiment)].sort_values("cases")
            panel.fill_between(rows["cases"], rows["low"], rows["high"], color=look["color"], alpha=0.15, linewidth=0)
            panel.plot(rows["cases"], rows["mean"], **look, label=experiment, markersize=4)
        panel.set_xscale("log")
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.minorticks_off()
        panel.set_xlabel("training cases")
        panel.set_title(name)
    axes[0].set_ylabel(label)
    _legend(figure, axes)
    return figure


def _legend(figure: Figure, axes: list[Axes]) -> None:
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(5, max(1, len(names))), handlelength=2.6)
