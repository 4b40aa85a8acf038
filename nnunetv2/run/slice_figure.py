"""The figure of `nnUNetv2_vit_draw`: panels of an image, its truth, and what a trained model makes of it."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dinov3.errors import ExperimentError
from dinov3.files import replace_when_complete
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.image_slice import Slice
from nnunetv2.run.model_views import FeaturePicture, Prediction, Query, name_of, values_of

COLUMNS, PANEL_SIDE, NARROWEST, OPACITY = 4, 3.5, 2.2, 0.45  # inches
GREY = (0.6, 0.6, 0.6)
CONFIDENCE = "viridis"


class Label(NamedTuple):
    """A foreground class or region.

    Attributes:
        name: that of `dataset.json`.
        values: the labels that belong to it.
        colour: of the picture.
    """

    name: str
    values: tuple[int, ...]
    colour: tuple[float, ...]


class Tile(NamedTuple):
    """A panel of the picture.

    Attributes:
        title: stands above it.
        image: (H, W) or (H, W, 3), 0 to 1.
        masks: drawn over the image, per label (H, W).
        colours: name of the colour map for (H, W); but for grey ones a scale stands beside the panel.
        lowest: the value at the lower end of the colour map.
    """

    title: str
    image: np.ndarray
    masks: tuple[tuple[Label, np.ndarray], ...] = ()
    colours: str = "gray"
    lowest: float = 0.0


def foreground(predictor: nnUNetPredictor) -> list[Label]:
    """The foreground classes, or regions, in the order of the network's classes."""
    manager = predictor.label_manager
    chosen = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    found = [values_of(values) for values in chosen]
    colours = colormaps["tab10"].colors
    return [Label(name_of(predictor, values), values, colours[i % len(colours)]) for i, values in enumerate(found)]


def ignored(predictor: nnUNetPredictor) -> list[Label]:
    """The ignore label, in a list; an empty list if there is none."""
    manager = predictor.label_manager
    return [Label("ignore", (int(manager.ignore_label),), GREY)] if manager.has_ignore_label else []


def segmentation_tiles(sliced: Slice, labels: list[Label], predicted: np.ndarray) -> Iterator[Tile]:
    """Yield the panels of image, truth (where there is one) and prediction.

    Args:
        sliced: the image, and perhaps its truth.
        labels: what to draw of truth and prediction.
        predicted: labels (H, W).
    """
    image = displayed(sliced.image)
    yield Tile("image", image)
    segmentations = {"truth": sliced.truth, "prediction": predicted}
    for title, labelled in segmentations.items():
        if labelled is not None:
            yield Tile(title, image, tuple((label, np.isin(labelled, label.values)) for label in labels))


def query_tiles(queries: Iterable[Query]) -> Iterator[Tile]:
    """Yield a panel for each query."""
    for query in queries:
        yield Tile(f"query {query.number}: {query.name} {query.score:.2f}", query.mask)


def confidence_tiles(prediction: Prediction, regions: list[str]) -> Iterator[Tile]:
    """Yield how sure a prediction is at every pixel: the probability of what is predicted there.

    Args:
        prediction: of a slice.
        regions: names of the regions, each with a panel of its own: it is predicted, or it is not; empty: the classes
            exclude each other.
    """
    probabilities = prediction.probabilities
    if not regions:
        yield _confidence_tile("confidence", probabilities.max(0), 1 / len(probabilities))
    for name, probability in zip(regions, probabilities[: len(regions)], strict=True):
        yield _confidence_tile(f"confidence, {name}", np.maximum(probability, 1 - probability), 1 / 2)


def _confidence_tile(title: str, confidence: np.ndarray, lowest: float) -> Tile:
    return Tile(f"{title} (mean {confidence.mean():.2f})", confidence, (), CONFIDENCE, lowest)


def feature_tiles(pictures: Iterable[FeaturePicture]) -> Iterator[Tile]:
    """Yield a panel for each block of the ViT whose features are shown."""
    for block, explained, picture in pictures:
        yield Tile(f"features, block {block} ({explained:.0%} of variance)", picture)


def displayed(image: np.ndarray) -> np.ndarray:
    """Scale an image (C, H, W) to 0 … 1: three channels as colours (H, W, 3), otherwise the first one (H, W)."""
    image = np.moveaxis(image, 0, -1) if len(image) == 3 else image[0]
    return (image - image.min()) / max(float(np.ptp(image)), 1e-6)


def write_figure(panels: list[Tile], labels: list[Label], title: str, path: Path) -> None:
    """Write the panels as one picture.

    Raises:
        ExperimentError: it cannot be written.
    """
    rows = -(-len(panels) // COLUMNS)
    columns = -(-len(panels) // rows)  # so that the last row is about as long as the others
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
        with replace_when_complete(path) as temporary:
            figure.savefig(temporary, format="png", dpi=100)
    except OSError as error:
        raise ExperimentError(f"-o: cannot write {path}: {error.strerror}") from error


def draw_tile(panel: Axes, tile: Tile) -> None:
    """Draw an image and its masks: as outlines, since regions overlap, on a thin wash of colour."""
    panel.set_title(tile.title, fontsize=11)
    drawn = panel.imshow(tile.image, cmap=tile.colours, vmin=tile.lowest, vmax=1, interpolation="nearest")
    if tile.colours != "gray":
        panel.figure.colorbar(drawn, ax=panel, fraction=0.046, pad=0.02)
    for label, mask in tile.masks:
        wash = np.zeros((*mask.shape, 4))
        wash[mask] = (*label.colour, OPACITY)
        panel.imshow(wash, interpolation="nearest")
        if mask.any() and not mask.all():
            panel.contour(mask, levels=[0.5], colors=[label.colour], linewidths=0.8)
