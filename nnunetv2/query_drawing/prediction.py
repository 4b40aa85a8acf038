"""What a trained Mask2Former predicts for a slice, and its most confident queries."""

from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import colormaps

from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.experiment.errors import ExperimentError


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


def segment(
    predictor: nnUNetPredictor, image: np.ndarray, labels: list[Label], number: int
) -> tuple[list[np.ndarray], list[Query]]:
    """Predict a slice as a whole.

    Args:
        predictor: with a Mask2Former.
        image: (C, H, W).
        labels: the foreground.
        number: of queries to return.

    Returns:
        A mask (H, W) for every label, and the most confident queries.

    Raises:
        ExperimentError: the slice does not fit into the GPU's memory.
    """
    network = predictor.network
    try:
        with torch.inference_mode():
            queries = network.forward_queries(torch.from_numpy(image)[None].to(predictor.device))
            logits = network.dense_logits(queries, image.shape[-2:])[0].float().cpu()
    except torch.OutOfMemoryError as error:
        shape = " × ".join(map(str, image.shape[-2:]))
        raise ExperimentError(
            f"a slice of {shape} does not fit into the memory of {predictor.device}; use -device cpu"
        ) from error
    if predictor.label_manager.has_regions:
        masks, names = list((logits > 0).numpy()), [label.name for label in labels]  # more probable than not
    else:
        chosen, values = logits.argmax(0).numpy(), list(predictor.label_manager.all_labels)
        masks = [chosen == values.index(label.values[0]) for label in labels]
        names = [next((label.name for label in labels if label.values == (value,)), "background") for value in values]
    return masks, most_confident(queries["pred_logits"][0], queries["pred_masks"][0], names, number)


def most_confident(classes: torch.Tensor, masks: torch.Tensor, names: list[str], number: int) -> list[Query]:
    """Return the queries that are surest of their class, the surest first.

    Args:
        classes: logits (Q, C + 1), "no object" last.
        masks: logits (Q, h, w).
        names: of the C classes.
        number: how many at most.
    """
    scores, chosen = classes.float().softmax(-1)[:, :-1].max(-1)
    order = scores.argsort(descending=True, stable=True)[:number].tolist()
    return [Query(i, names[int(chosen[i])], float(scores[i]), masks[i].float().sigmoid().cpu().numpy()) for i in order]
