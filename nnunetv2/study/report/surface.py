"""Distances between the surfaces of two masks."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.spatial import cKDTree


@dataclass(frozen=True, eq=False)
class Surface:
    """The surface of a mask: its pixels that have a background pixel, or the image's border, beside them.

    Attributes:
        points: their positions in the unit of the spacing, (N, dimensions).
    """

    points: np.ndarray

    @cached_property
    def tree(self) -> cKDTree:
        """For the nearest point of the surface."""
        return cKDTree(self.points, balanced_tree=False, compact_nodes=False)


def surface_of(mask: np.ndarray, spacing: tuple[float, ...], corner: tuple[int, ...]) -> Surface:
    """Return the surface of a mask.

    Args:
        mask: (H, W) or (D, H, W); what is outside of it is background.
        spacing: along each axis.
        corner: position of its first pixel in the image.
    """
    padded = np.pad(mask, 1)
    centre = (slice(1, -1),) * mask.ndim
    interior = mask.copy()
    for axis in range(mask.ndim):
        for step in (slice(2, None), slice(None, -2)):
            interior &= padded[(*centre[:axis], step, *centre[axis + 1 :])]
    return Surface((np.argwhere(mask & ~interior) + corner) * np.asarray(spacing))


def surface_metrics(reference: Surface, prediction: Surface, diagonal: float, tolerance: float) -> tuple[float, float]:
    """Return the 95th percentile of the Hausdorff distance and the normalised surface Dice, as MONAI computes them.

    Args:
        reference: of the truth.
        prediction: of the prediction.
        diagonal: of the image: the distance where one of the masks is empty.
        tolerance: of the surface Dice (Nikolov et al., arXiv:1809.04430).

    Returns:
        Both in the unit of the spacing; NaN where both masks are empty.
    """
    if len(reference.points) == 0 or len(prediction.points) == 0:
        both = len(reference.points) == len(prediction.points)
        return (np.nan, np.nan) if both else (diagonal, 0.0)
    to_reference = reference.tree.query(prediction.points)[0]
    to_prediction = prediction.tree.query(reference.points)[0]
    within = np.count_nonzero(to_reference <= tolerance) + np.count_nonzero(to_prediction <= tolerance)
    hausdorff = max(np.percentile(to_reference, 95), np.percentile(to_prediction, 95))
    return float(hausdorff), float(within / (len(to_reference) + len(to_prediction)))
