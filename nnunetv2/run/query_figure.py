"""The figure of `nnUNetv2_m2f_draw`: an image, its truth, what a trained Mask2Former predicts, and its queries."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dinov3.errors import ExperimentError, in_one_line
from dinov3.files import replace_when_complete
from nnunetv2.experiment.checkpoint import read_fold_checkpoint
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.model.model_m2f import M2FSegmentationModel
from nnunetv2.run.devices import find_device
from nnunetv2.run.image_slice import Slice

COLUMNS, PANEL_SIDE, NARROWEST, OPACITY = 4, 3.5, 2.2, 0.45  # inches
GREY = (0.6, 0.6, 0.6)


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


class Query(NamedTuple):
    """A query.

    Attributes:
        number: of the query, from 0.
        name: the class that it finds most probable besides "no object".
        score: that probability.
        mask: probabilities (h, w).
    """

    number: int
    name: str
    score: float
    mask: np.ndarray


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


def load_model(folder: Path, fold: str, checkpoint: str, device: str) -> nnUNetPredictor:
    """Load a trained Mask2Former; its checkpoint is read safely before nnU-Net reads it.

    Args:
        folder: of the model.
        fold: a number, or `all`.
        checkpoint: name of the file in the fold's folder.
        device: cpu, cuda or mps.

    Raises:
        ExperimentError: there is no such device, or the files are not those of a Mask2Former.
    """
    # nnU-Net's own reading would run whatever a file tells it to
    read_fold_checkpoint(folder / f"fold_{fold}" / checkpoint, "-chk")
    predictor = nnUNetPredictor(device=find_device(device), allow_tqdm=False)
    try:
        predictor.initialize_from_trained_model_folder(str(folder), (fold,), checkpoint)
    except Exception as error:  # whatever plans and checkpoints that do not belong together end in
        raise ExperimentError(f"-m: {folder} cannot be read as a trained model: {in_one_line(error)}") from error
    if not isinstance(predictor.network, M2FSegmentationModel):
        raise ExperimentError(f"-m: {folder} holds a {type(predictor.network).__name__}, not a Mask2Former")
    predictor.network.to(predictor.device).eval()
    return predictor


def foreground(predictor: nnUNetPredictor) -> list[Label]:
    """The foreground classes, or regions, in the order of the network's classes."""
    manager = predictor.label_manager
    names = {_values(values): name for name, values in predictor.dataset_json["labels"].items()}
    chosen = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    found = [_values(values) for values in chosen]
    colours = colormaps["tab10"].colors
    return [Label(names.get(values, str(values)), values, colours[i % len(colours)]) for i, values in enumerate(found)]


def _values(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values) if isinstance(values, (list, tuple)) else (int(values),)


def ignored(predictor: nnUNetPredictor) -> list[Label]:
    """The ignore label, in a list; an empty list if there is none."""
    manager = predictor.label_manager
    return [Label("ignore", (int(manager.ignore_label),), GREY)] if manager.has_ignore_label else []


def predict(predictor: nnUNetPredictor, image: np.ndarray) -> np.ndarray:
    """Predict a slice as `nnUNetv2_predict` does: window by window, with mirroring.

    Args:
        predictor: with a trained model.
        image: (C, H, W).

    Returns:
        Labels (H, W).
    """
    logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(image).unsqueeze(1))
    return np.asarray(predictor.label_manager.convert_logits_to_segmentation(logits))[0]


def confident_queries(predictor: nnUNetPredictor, image: np.ndarray, number: int) -> list[Query]:
    """Return the queries that are most confident of their class; they see the whole slice.

    Args:
        predictor: with a Mask2Former.
        image: (C, H, W).
        number: how many at most.

    Raises:
        ExperimentError: the slice does not fit into the GPU's memory.
    """
    try:
        with torch.inference_mode():
            queries = predictor.network.forward_queries(torch.from_numpy(image)[None].to(predictor.device))
    except torch.OutOfMemoryError as error:
        shape = " × ".join(map(str, image.shape[-2:]))
        raise ExperimentError(
            f"a slice of {shape} does not fit into the memory of {predictor.device}; use -device cpu"
        ) from error
    names = [label.name for label in foreground(predictor)]
    names = names if predictor.label_manager.has_regions else ["background", *names]
    return most_confident(queries["pred_logits"][0], queries["pred_masks"][0], names, number)


def most_confident(classes: torch.Tensor, masks: torch.Tensor, names: list[str], number: int) -> list[Query]:
    """Return the queries that are most confident of their class, in descending order.

    Args:
        classes: logits (Q, C + 1), "no object" last.
        masks: logits (Q, h, w).
        names: of the C classes.
        number: how many at most.
    """
    scores, chosen = classes.float().softmax(-1)[:, :-1].max(-1)
    order = scores.argsort(descending=True, stable=True)[:number].tolist()
    return [Query(i, names[int(chosen[i])], float(scores[i]), masks[i].float().sigmoid().cpu().numpy()) for i in order]


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
    segmentations = {"truth": sliced.truth, "prediction": predicted}
    for title, labelled in segmentations.items():
        if labelled is not None:
            yield Tile(title, image, [(label, np.isin(labelled, label.values)) for label in labels])
    for query in queries:
        yield Tile(f"query {query.number}: {query.name} {query.score:.2f}", query.mask, [])


def displayed(image: np.ndarray) -> np.ndarray:
    """Scale an image (C, H, W) to 0 … 1: three channels as colours (H, W, 3), otherwise the first one (H, W)."""
    image = np.moveaxis(image, 0, -1) if len(image) == 3 else image[0]
    return (image - image.min()) / max(float(np.ptp(image)), 1e-6)


def write_figure(panels: list[Tile], labels: list[Label], title: str, path: Path) -> None:
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
        with replace_when_complete(path) as temporary:
            figure.savefig(temporary, format="png", dpi=100)
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
