"""What the figures have in common: colours, lines, fonts, sizes."""

from collections.abc import Iterator
from contextlib import contextmanager

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart, without the black
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7F7F7F")
LINES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))  # after the last colour the next kind of line begins
GREY = "#6b7280"
SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9ca3af",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text
}


@contextmanager
def drawing_style() -> Iterator[None]:
    """Draw and save in the style of the report."""
    with rc_context(SETTINGS):
        yield


def colours_of(experiments: list[str]) -> dict[str, str]:
    """Return a colour per experiment; they repeat after the eighth, so only where a name stands beside it."""
    return {experiment: PALETTE[i % len(PALETTE)] for i, experiment in enumerate(experiments)}


def lines_of(experiments: list[str]) -> dict[str, dict[str, str]]:
    """Return colour, line style and marker per experiment, for legends: 32 different ones."""
    looks = {}
    for i, (experiment, colour) in enumerate(colours_of(experiments).items()):
        style, marker = LINES[i // len(PALETTE) % len(LINES)]
        looks[experiment] = {"color": colour, "linestyle": style, "marker": marker}
    return looks


def panels(number: int, width: float, height: float, columns: int = 3) -> tuple[Figure, list[Axes]]:
    """Return a figure with a number of panels of a size in inches, in rows of at most `columns`."""
    columns = min(columns, number)
    rows = -(-number // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[number:]:
        unused.remove()
    return figure, axes[:number]


def tilt_labels(axes: Axes, labels: list[str]) -> None:
    """Tilt the labels of the x axis where they would run into each other."""
    if sum(map(len, labels)) > 28:
        for text in axes.get_xticklabels():
            text.set(rotation=30, ha="right", rotation_mode="anchor")
