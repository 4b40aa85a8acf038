"""All predictions of one case, measured in a process of its own."""

from pathlib import Path
from typing import Any

import numpy as np

from dinov3.errors import ExperimentError, in_one_line
from nnunetv2.study.report.calibration import brier_score, calibration_bins, expected_calibration_error
from nnunetv2.study.report.case_metrics import Mask, measure
from nnunetv2.study.report.data import Data

Measured = dict[str, dict[str, Any]]  # class -> metric -> value


def measure_case(data: Data, case: str, predictions: list[Path]) -> list[Measured]:
    """Measure the predictions of a case; what depends on the truth alone is worked out once.

    Args:
        data: of the comparison.
        case: its name.
        predictions: the segmentation files; probabilities are read where they lie beside one.

    Returns:
        Per prediction and class the metrics, and `bins` (3, bins) of the calibration.

    Raises:
        ExperimentError: a file cannot be read, or has another shape than the truth.
    """
    truth, spacing = data.read_segmentation(data.truth_file(case))
    counted = None if data.ignore_label is None else truth != data.ignore_label
    references = [Mask(one.mask(truth), spacing) for one in data.classes]
    measured = []
    for path in predictions:
        predicted, _ = data.read_segmentation(path)
        if predicted.shape != truth.shape:
            raise ExperimentError(f"{path} has the shape {predicted.shape}, its truth {truth.shape}")
        probabilities = _probabilities(path, data.file_ending, truth.shape)
        classes: Measured = {}
        for one, reference in zip(data.classes, references, strict=True):
            mask = one.mask(predicted) if counted is None else one.mask(predicted) & counted
            values: dict[str, Any] = dict(measure(reference, Mask(mask, spacing), one.tubular, data.nsd_tolerance))
            if probabilities is not None:
                values |= _calibration(probabilities[one.channel], reference.pixels, counted)
            classes[one.name] = values
        measured.append(classes)
    return measured


def probability_file(prediction: Path, file_ending: str) -> Path:
    """Where nnU-Net keeps the probabilities of a prediction, if it does."""
    return prediction.with_name(f"{prediction.name.removesuffix(file_ending)}.npz")


def _probabilities(prediction: Path, file_ending: str, shape: tuple[int, ...]) -> np.ndarray | None:
    path = probability_file(prediction, file_ending)
    if not path.is_file():
        return None
    try:
        with np.load(path) as stored:
            return stored["probabilities"].astype(np.float32, copy=False).reshape(-1, *shape)
    except Exception as error:  # a damaged archive ends in many ways
        raise ExperimentError(f"cannot read the probabilities in {path}: {in_one_line(error)}") from error


def _calibration(probability: np.ndarray, truth: np.ndarray, counted: np.ndarray | None) -> dict[str, Any]:
    if counted is not None:
        probability, truth = probability[counted], truth[counted]
    bins = calibration_bins(probability, truth)
    return {
        "brier": brier_score(probability, truth),
        "ece": expected_calibration_error(bins),
        "bins": bins.tolist(),
    }
