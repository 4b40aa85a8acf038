"""The critical-difference diagram (Demšar, JMLR 2006)."""

import pandas as pd
from matplotlib.figure import Figure

from nnunetv2.study.report.figures.style import colours_of


def rank_diagram(ranks: pd.Series, equal_groups: list[list[str]], critical_distance: float, title: str) -> Figure:
    """Draw the mean ranks on an axis, with bars that join the experiments that do not differ significantly.

    Args:
        ranks: mean rank per experiment; 1 is best.
        equal_groups: experiments that do not differ.
        critical_distance: of mean ranks that differ.
        title: of the figure.
    """
    ordered = ranks.sort_values()
    colours = colours_of(list(ranks.index))
    half = -(-len(ordered) // 2)
    bars = [group for group in equal_groups if len(group) > 1]
    figure = Figure(figsize=(6.4, 1.3 + 0.3 * half + 0.14 * len(bars)), layout="constrained")
    axes = figure.subplots()
    axes.set_xlim(0.55, len(ordered) + 0.45)
    axes.set_title(title)
    base = 0.6 + 0.35 * len(bars)
    for place, (experiment, rank) in enumerate(ordered.items()):
        left = place < half
        depth = base + 0.7 * (place if left else len(ordered) - 1 - place)
        edge = 0.9 if left else len(ordered) + 0.1
        axes.plot((rank, rank, edge), (0, depth, depth), color=colours[experiment], linewidth=1.3)
        axes.plot(rank, 0, "o", color=colours[experiment], markersize=5, clip_on=False)
        side = {"xytext": (-4, -3), "ha": "right"} if left else {"xytext": (4, -3), "ha": "left"}
        axes.annotate(f"{experiment} ({rank:.2f})", (edge, depth), textcoords="offset points", **side)
    for level, group in enumerate(bars):
        within = [ranks[experiment] for experiment in group]
        height = 0.35 * (level + 1)
        axes.plot((min(within) - 0.04, max(within) + 0.04), (height, height), color="#111827", linewidth=4)
    axes.set_ylim(base + 0.7 * half, 0)
    axes.xaxis.tick_top()
    axes.set_xticks(range(1, len(ordered) + 1))
    axes.set_yticks([])
    axes.grid(False)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.spines["top"].set_visible(True)
    note = f"mean rank (1 is best); critical difference {critical_distance:.2f}"
    axes.annotate(note, (0.5, 0.0), xycoords="axes fraction", ha="center", va="bottom", fontsize=8)
    return figure
