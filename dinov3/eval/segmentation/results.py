"""What an evaluation finds."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor


class Example(NamedTuple):
    """A case to draw, of at most 512 pixels a side.

    Attributes:
        name: of the image.
        image: (H, W, 3), uint8.
        labels: (H, W).
        prediction: classes (H, W).
    """

    name: str
    image: np.ndarray
    labels: np.ndarray
    prediction: np.ndarray


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        metrics: `aAcc` and the means over classes (see `calculate_segmentation_metrics`), from 0 to 1.
        per_class: name of each metric of the classes to its values; None where there is nothing to divide by.
        confusion_matrix: pixels by true and predicted class, (C, C), int64.
        num_images: number of images.
        seconds: how long it took.
        examples: cases to draw, on the main process.
    """

    metrics: dict[str, float]
    per_class: dict[str, list[float | None]]
    confusion_matrix: Tensor
    num_images: int
    seconds: float
    examples: list[Example]

    def as_json(self) -> dict:
        """Return the figures as plain values; None where a metric is not a number."""
        metrics = {name: None if math.isnan(value) else value for name, value in self.metrics.items()}
        return {
            "metrics": metrics,
            "per_class": self.per_class,
            "num_images": self.num_images,
            "seconds": round(self.seconds, 3),
        }
