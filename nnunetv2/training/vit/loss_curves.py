"""Loss curves of Mask2Former's terms over the epochs."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dinov3.files import replace_when_complete

TERMS = ("loss_mask", "loss_dice", "loss_cross_entropy")
PHASES = ("train", "val")


def curve_names() -> list[str]:
    """Names under which the terms are logged: `train_loss_mask`, …, `val_loss_cross_entropy`."""
    return [f"{phase}_{term}" for phase in PHASES for term in TERMS]


def draw_terms(curves: dict[str, list[float]], path: Path) -> None:
    """Write the picture.

    Args:
        curves: a value per epoch under each of `curve_names`.
        path: of the picture.
    """
    with replace_when_complete(path) as temporary:
        terms_figure(curves).savefig(temporary, format="png", dpi=80)


def terms_figure(curves: dict[str, list[float]]) -> Figure:
    """Draw the terms over the epochs, a panel for each.

    Args:
        curves: a value per epoch under each of `curve_names`.
    """
    figure = Figure(figsize=(6 * len(TERMS), 5), layout="constrained")
    axes = figure.subplots(1, len(TERMS))
    for panel, term in zip(axes, TERMS, strict=True):
        for phase, colour in zip(PHASES, ("b", "r"), strict=True):
            panel.plot(curves[f"{phase}_{term}"], color=colour, marker=".", label=phase)
        panel.set_title(f"{term}, weighted, sum of all layers", fontsize=12)
        panel.set_xlabel("epoch", fontsize=12)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.tick_params(labelsize=11)
        panel.legend(fontsize=12)
    return figure
