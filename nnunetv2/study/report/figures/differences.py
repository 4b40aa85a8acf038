"""Paired differences to the baseline with their 95% intervals."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nnunetv2.study.report.figures.style import GREY, colours_of, panels


def differences_figure(differences: pd.DataFrame, experiments: list[str], baseline: str, label: str) -> Figure:
    """Draw a panel per class.

    Args:
        differences: to the baseline; columns class, experiment, difference, low, high, p_holm.
        experiments: of the comparison, in their order.
        baseline: what is subtracted.
        label: of the metric.
    """
    names = list(dict.fromkeys(differences["class"]))
    compared = [experiment for experiment in experiments if experiment != baseline]
    colours = colours_of(experiments)
    figure, axes = panels(len(names), 3.6, 1.0 + 0.36 * len(compared))
    for panel, name in zip(axes, names, strict=True):
        rows = differences[differences["class"] == name].set_index("experiment")
        for height, experiment in enumerate(reversed(compared)):
            row = rows.loc[experiment]
            panel.plot((row["low"], row["high"]), (height, height), color=colours[experiment], linewidth=2.2)
            panel.plot(row["difference"], height, "o", color=colours[experiment], markersize=6)
            if row["p_holm"] < 0.05:
                panel.annotate("*", (row["high"], height), (4, -3), textcoords="offset points", fontsize=11)
        panel.axvline(0, color=GREY, linewidth=1, linestyle="--")
        is_first = panel.get_subplotspec().is_first_col()
        panel.set_yticks(range(len(compared)), list(reversed(compared)) if is_first else [""] * len(compared))
        panel.margins(x=0.12)
        panel.set_ylim(-0.6, len(compared) - 0.4)
        panel.grid(False, axis="y")
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.set_title(name)
        panel.set_xlabel(f"{label}, difference to {baseline}")
    return figure
