"""What a trained Mask2Former predicts for a slice, and its most confident queries."""

from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import colormaps

from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

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
    """The label that stands for pixels of which nothing is known, in a list; an empty one if there is none."""
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
    """Return the queries that are surest of their class; they see the slice as a whole.

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
    return most_confident(queries["pred_logits"][0], queries["pred_masks"][0], class_names(predictor), number)


def class_names(predictor: nnUNetPredictor) -> list[str]:
    """Names of the network's classes: the regions, or background and the foreground labels."""
    names = [label.name for label in foreground(predictor)]
    return names if predictor.label_manager.has_regions else ["background", *names]


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
