"""Learning curves of all runs, and quality over the number of training cases."""

import pandas as pd
from matplotlib.figure import Figure

from nnunetv2.study.report.figures.style import colours_of, panels
from nnunetv2.study.report.learning_curves import COLUMNS


def learning_figure(curves: list[tuple[str, pd.DataFrame]], experiments: list[str]) -> Figure:
    """Draw pseudo Dice, training and validation loss: a thin line per run, and a thick one per experiment's mean.

    Args:
        curves: experiment and curve of every run.
        experiments: in their order.
    """
    colours = colours_of(experiments)
    columns = list(reversed(COLUMNS.values()))
    figure, axes = panels(len(columns), 3.6, 2.9)
    for panel, column in zip(axes, columns, strict=True):
        for experiment in experiments:
            runs = [curve[column] for name, curve in curves if name == experiment and len(curve)]
            if not runs:
                continue
            for run in runs:
                panel.plot(run.index, run, color=colours[experiment], linewidth=0.6, alpha=0.45)
            mean = pd.concat(runs, axis=1).mean(axis=1)
            panel.plot(mean.index, mean, color=colours[experiment], linewidth=1.8, label=experiment)
        panel.set_xlabel("epoch")
        panel.set_title(column)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(5, max(1, len(names))))
    return figure


def data_size_figure(summary: pd.DataFrame, experiments: list[str], sizes: list[int], label: str) -> Figure:
    """Draw the mean with its interval over the number of training cases, a panel per class.

    Args:
        summary: columns experiment, class, cases (number of training cases), mean, low, high.
        experiments: in their order.
        sizes: the numbers, in ascending order.
        label: of the metric.
    """
    names = list(dict.fromkeys(summary["class"]))
    colours = colours_of(experiments)
    figure, axes = panels(len(names), 3.4, 2.9)
    for panel, name in zip(axes, names, strict=True):
        for experiment in experiments:
            rows = summary[(summary["class"] == name) & (summary["experiment"] == experiment)].sort_values("cases")
            panel.fill_between(
                rows["cases"], rows["low"], rows["high"], color=colours[experiment], alpha=0.15, linewidth=0
            )
            panel.plot(rows["cases"], rows["mean"], "o-", color=colours[experiment], label=experiment, markersize=4)
        panel.set_xscale("log")
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.minorticks_off()
        panel.set_xlabel("training cases")
        panel.set_title(name)
    axes[0].set_ylabel(label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(5, len(experiments)))
    return figure
