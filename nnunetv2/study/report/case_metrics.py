"""The metrics of a prediction, one class at a time."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from skimage.measure import label
from skimage.morphology import skeletonize

from nnunetv2.study.report.surface import Surface, surface_metrics, surface_of

NAN = float("nan")


@dataclass(frozen=True, eq=False)
class Mask:
    """A class in an image, and what is worked out of it once, however many predictions it is compared with.

    Attributes:
        pixels: where the class is, (H, W) or (D, H, W).
        spacing: along each axis.
    """

    pixels: np.ndarray
    spacing: tuple[float, ...]

    @cached_property
    def size(self) -> int:
        """Number of pixels."""
        return int(np.count_nonzero(self.pixels))

    @cached_property
    def box(self) -> tuple[slice, ...]:
        """The smallest part of the image that has all pixels: what is outside of it need not be searched."""
        if not self.size:
            return (slice(0),) * self.pixels.ndim
        axes = range(self.pixels.ndim)
        filled = [np.flatnonzero(self.pixels.any(tuple(a for a in axes if a != axis))) for axis in axes]
        return tuple(slice(int(places[0]), int(places[-1]) + 1) for places in filled)

    @cached_property
    def surface(self) -> Surface:
        """The surface."""
        return surface_of(self.pixels[self.box], self.spacing, tuple(part.start or 0 for part in self.box))

    @cached_property
    def skeleton(self) -> np.ndarray:
        """The centreline, of the shape of the mask."""
        skeleton = np.zeros_like(self.pixels)
        if self.size:
            skeleton[self.box] = skeletonize(self.pixels[self.box])
        return skeleton

    @cached_property
    def components(self) -> int:
        """Number of connected components (8 or 26 neighbours)."""
        return int(label(self.pixels[self.box], connectivity=self.pixels.ndim, return_num=True)[1]) if self.size else 0

    @property
    def diagonal(self) -> float:
        """Of the image."""
        return float(np.linalg.norm(np.multiply(self.pixels.shape, self.spacing)))


def measure(reference: Mask, prediction: Mask, tubular: bool, nsd_tolerance: float) -> dict[str, float]:
    """Return the metrics of a prediction by their keys; NaN where one is undefined.

    Args:
        reference: the truth.
        prediction: of the same shape; ignored pixels are in neither of the masks.
        tubular: whether to measure centrelines and components.
        nsd_tolerance: of the normalised surface Dice, in the unit of the spacing.
    """
    hd95, nsd = surface_metrics(reference.surface, prediction.surface, reference.diagonal, nsd_tolerance)
    metrics = {**overlap(reference, prediction), "hd95": hd95, "nsd": nsd}
    if tubular:
        metrics["cldice"] = centreline_dice(reference, prediction)
        both_empty = reference.size + prediction.size == 0
        metrics["betti0_error"] = NAN if both_empty else float(abs(reference.components - prediction.components))
    return metrics


def overlap(reference: Mask, prediction: Mask) -> dict[str, float]:
    """Return what follows from the numbers of pixels; Dice and IoU are nnU-Net's."""
    true_positives = int(np.count_nonzero(reference.pixels & prediction.pixels))
    union = reference.size + prediction.size - true_positives
    return {
        "reference_pixels": reference.size,
        "predicted_pixels": prediction.size,
        "dice": _ratio(2 * true_positives, reference.size + prediction.size),
        "iou": _ratio(true_positives, union),
        "volume_error": _ratio(abs(prediction.size - reference.size), reference.size),
        "sensitivity": _ratio(true_positives, reference.size),
        "precision": _ratio(true_positives, prediction.size),
    }


def centreline_dice(reference: Mask, prediction: Mask) -> float:
    """Return the clDice: how much of each centreline lies in the other mask (Shit et al., CVPR 2021)."""
    if reference.size + prediction.size == 0:
        return NAN
    if reference.size == 0 or prediction.size == 0:
        return 0.0
    topology_precision = np.mean(reference.pixels[prediction.skeleton])
    topology_sensitivity = np.mean(prediction.pixels[reference.skeleton])
    both = topology_precision + topology_sensitivity
    return float(2 * topology_precision * topology_sensitivity / both) if both else 0.0


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else NAN
