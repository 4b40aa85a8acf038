"""The picture: image, truth, prediction and the masks of queries."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.experiment.picture import save_picture
from nnunetv2.query_drawing.image_slice import Slice
from nnunetv2.query_drawing.prediction import Label, Query

COLUMNS, PANEL_SIDE, NARROWEST, OPACITY = 4, 3.5, 2.2, 0.45  # inches


class Tile(NamedTuple):
    """A panel of the picture.

    Attributes:
        title: stands above it.
        image: (H, W) or (H, W, 3), 0 to 1.
        masks: drawn over the image, per label (H, W).
    """

    title: str
    image: np.ndarray
    masks: list[tuple[Label, np.ndarray]]


def tiles(sliced: Slice, labels: list[Label], predicted: np.ndarray, queries: list[Query]) -> Iterator[Tile]:
    """Yield the panels: image, truth, prediction, queries.

    Args:
        sliced: the image, and perhaps its truth.
        labels: what to draw of truth and prediction.
        predicted: labels (H, W).
        queries: a panel each.
    """
    image = displayed(sliced.image)
    yield Tile("image", image, [])
    if sliced.truth is not None:
        yield Tile("truth", image, masks_of(sliced.truth, labels))
    yield Tile("prediction", image, masks_of(predicted, labels))
    for query in queries:
        yield Tile(f"query {query.number}: {query.name} {query.score:.2f}", query.mask, [])


def masks_of(segmentation: np.ndarray, labels: list[Label]) -> list[tuple[Label, np.ndarray]]:
    """Return each label with its mask (H, W) in a segmentation (H, W)."""
    return [(label, np.isin(segmentation, label.values)) for label in labels]


def displayed(image: np.ndarray) -> np.ndarray:
    """Scale an image (C, H, W) to 0 … 1: three channels as colours (H, W, 3), otherwise the first one (H, W)."""
    image = np.moveaxis(image, 0, -1) if len(image) == 3 else image[0]
    return (image - image.min()) / max(float(np.ptp(image)), 1e-6)


def write_picture(panels: list[Tile], labels: list[Label], title: str, path: Path) -> None:
    """Write the panels as one picture.

    Raises:
        ExperimentError: it cannot be written.
    """
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    height, width = (PANEL_SIDE * side / max(panels[0].image.shape[:2]) for side in panels[0].image.shape[:2])
    size = (max(width, NARROWEST) * columns, (height + 0.35) * rows + 0.9)  # with titles and legend
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for panel in axes.flat:
        panel.set_axis_off()
    for panel, tile in zip(axes.flat, panels, strict=False):
        draw_tile(panel, tile)
    figure.suptitle(title)
    handles = [Patch(color=label.colour, label=label.name) for label in labels]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)))
    try:
        save_picture(figure, path, dpi=100)
    except OSError as error:
        raise ExperimentError(f"-o: cannot write {path}: {error.strerror}") from error


def draw_tile(panel: Axes, tile: Tile) -> None:
    """Draw an image and its masks: as outlines, since regions overlap, on a thin wash of colour."""
    panel.set_title(tile.title, fontsize=11)
    panel.imshow(tile.image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    for label, mask in tile.masks:
        wash = np.zeros((*mask.shape, 4))
        wash[mask] = (*label.colour, OPACITY)
        panel.imshow(wash, interpolation="nearest")
        if mask.any() and not mask.all():
            panel.contour(mask, levels=[0.5], colors=[label.colour], linewidths=0.8)
