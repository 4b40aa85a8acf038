"""How well predicted probabilities agree with how often they are right: one class against the rest."""

import numpy as np

NUM_BINS = 15


def calibration_bins(probability: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return pixels, sum of the probabilities and number of pixels of the class for bins of equal width.

    Args:
        probability: of the class, 0 to 1, of any shape.
        truth: where it is, of the same shape.

    Returns:
        (3, NUM_BINS), float64; bins of several cases can be added up.
    """
    probability, truth = probability.ravel(), truth.ravel()
    bins = np.minimum((probability * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    weights = (None, probability, truth)
    return np.stack([np.bincount(bins, weights=w, minlength=NUM_BINS).astype(np.float64) for w in weights])


def expected_calibration_error(bins: np.ndarray) -> float:
    """Return the expected calibration error (Guo et al., ICML 2017) of bins (3, NUM_BINS); NaN without pixels."""
    pixels, confidence, positives = bins
    return float(np.abs(confidence - positives).sum() / pixels.sum()) if pixels.sum() else float("nan")


def brier_score(probability: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean of (p − y)² (Brier, 1950); NaN without pixels."""
    return float(np.mean((probability - truth) ** 2)) if truth.size else float("nan")
