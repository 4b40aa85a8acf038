"""The foreground classes or regions of a data set, and their masks."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dinov3.errors import ExperimentError


@dataclass(frozen=True)
class ForegroundClass:
    """A foreground class or region.

    Attributes:
        name: that of `dataset.json`.
        labels: the labels that belong to it.
        channel: of the probabilities that nnU-Net keeps.
        tubular: whether all its labels are those of tubular structures.
    """

    name: str
    labels: tuple[int, ...]
    channel: int
    tubular: bool

    def mask(self, segmentation: np.ndarray) -> np.ndarray:
        """Return where a segmentation has the class."""
        mask = segmentation == self.labels[0]
        for label in self.labels[1:]:
            mask |= segmentation == label
        return mask


def foreground_classes(dataset_json: dict[str, Any], tubular: list[int]) -> list[ForegroundClass]:
    """Return the classes or regions of a data set in the order of its `dataset.json`.

    Args:
        dataset_json: of the trained model.
        tubular: labels of tubular structures.
    """
    labels = {name: _as_tuple(value) for name, value in dataset_json["labels"].items() if name != "ignore"}
    foreground = {name: values for name, values in labels.items() if set(values) != {0}}
    has_regions = any(len(values) > 1 for values in foreground.values())
    return [
        ForegroundClass(name, values, index if has_regions else values[0], set(values) <= set(tubular))
        for index, (name, values) in enumerate(foreground.items())
    ]


def check_tubular(tubular: list[int], classes: list[ForegroundClass], dataset: str) -> None:
    """Check that labels of tubular structures are labels of the data set.

    Raises:
        ExperimentError: one is not.
    """
    known = {label for one in classes for label in one.labels}
    unknown = [label for label in tubular if label not in known]
    if unknown:
        raise ExperimentError(f"tubular: {unknown[0]} is no label of {dataset}; allowed: {sorted(known)}")


def _as_tuple(value: Any) -> tuple[int, ...]:
    return tuple(int(v) for v in value) if isinstance(value, (list, tuple)) else (int(value),)
