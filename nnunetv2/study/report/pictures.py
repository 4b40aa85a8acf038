"""The best, the median and the worst case of a class, read from the files."""

import math
import os
from pathlib import Path

import numpy as np
import pandas as pd

from dinov3.errors import ExperimentError, in_one_line
from nnunetv2.experiment.plans import read_json
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name
from nnunetv2.paths import nnUNet_raw
from nnunetv2.study.members import Comparison
from nnunetv2.study.report.case_table import predictions_of
from nnunetv2.study.report.classes import ForegroundClass
from nnunetv2.study.report.data import Data
from nnunetv2.study.report.figures.case_pictures import Picture
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets


def image_files(dataset: str) -> dict[str, list[Path]]:
    """Return the images of the training cases; empty where the raw data set is not there any more."""
    folder = Path(str(nnUNet_raw)) / dataset if nnUNet_raw.is_set() else None
    if folder is None or not (folder / "dataset.json").is_file():
        return {}
    found = get_filenames_of_train_images_and_targets(str(folder), read_json(folder / "dataset.json"))
    files = {case: [Path(os.path.abspath(path)) for path in entry["images"]] for case, entry in found.items()}
    return {case: paths for case, paths in files.items() if all(path.is_file() for path in paths)}


def chosen_cases(dice: pd.DataFrame) -> dict[str, str]:
    """Return the worst, the median and the best case by the mean Dice of all experiments, in this order.

    Args:
        dice: case × experiment.
    """
    ordered = dice.mean(axis=1).dropna().sort_values(kind="stable").index
    places = {"worst": 0, "median": (len(ordered) - 1) // 2, "best": len(ordered) - 1} if len(ordered) else {}
    return {word: ordered[place] for word, place in places.items()}


def pictures_of_class(
    comparison: Comparison, data: Data, one: ForegroundClass, dice: pd.DataFrame, images: dict[str, list[Path]]
) -> list[Picture]:
    """Return the pictures of a class: the predictions are those of the first run of an experiment that has the case.

    Args:
        comparison: whose members are finished, of one number of training cases.
        data: of the comparison.
        one: the class.
        dice: of the class, case × experiment.
        images: of the cases.
    """
    files: dict[tuple[str, str], Path] = {}
    for member in comparison.members:
        for case, path in predictions_of(member, data.file_ending).items():
            files.setdefault((member.experiment, case), path)
    pictures = []
    for word, case in chosen_cases(dice).items():
        predictions = {experiment: files[experiment, case] for experiment in dice.columns}
        captions = {experiment: f"Dice {dice.loc[case, experiment]:.3f}" for experiment in dice.columns}
        pictures.append(_picture(data, one, f"{word}: {case}", case, predictions, captions, images.get(case)))
    return pictures


def _picture(
    data: Data,
    one: ForegroundClass,
    title: str,
    case: str,
    predictions: dict[str, Path],
    captions: dict[str, str],
    image_paths: list[Path] | None,
) -> Picture:
    segmentation, spacing = data.read_segmentation(data.truth_file(case))
    truth = one.mask(segmentation)
    masks = {experiment: one.mask(data.read_segmentation(path)[0]) for experiment, path in predictions.items()}
    if data.ignore_label is not None:
        masks = {experiment: mask & (segmentation != data.ignore_label) for experiment, mask in masks.items()}
    image = _read_image(data, image_paths, truth.shape)
    if truth.ndim == 3:
        areas = sum((mask.sum(axis=(1, 2)) for mask in masks.values()), 2 * truth.sum(axis=(1, 2)))
        shown = int(np.argmax(areas))
        title = f"{title}, slice {shown}"
        truth, image = truth[shown], image[shown]
        masks = {experiment: mask[shown] for experiment, mask in masks.items()}
    return Picture(title, image, truth, masks, captions, spacing[-2] / spacing[-1])


def _read_image(data: Data, paths: list[Path] | None, shape: tuple[int, ...]) -> np.ndarray:
    """Return (*shape) or, of three channels, (*shape, 3), scaled to 0 … 1; grey where there is no image.

    Raises:
        ExperimentError: a file cannot be read, or has another shape.
    """
    if paths is None:
        return np.full(shape, 0.25)
    try:
        image = recursive_find_reader_writer_by_name(data.reader)().read_images([str(path) for path in paths])[0]
    except Exception as error:  # every reader has its own
        raise ExperimentError(f"cannot read the image {paths[0]}: {in_one_line(error)}") from error
    if image.size != len(image) * math.prod(shape):
        raise ExperimentError(f"{paths[0]} has the shape {image.shape[1:]}, its truth {shape}")
    image = image.reshape(len(image), *shape)
    image = np.moveaxis(image, 0, -1) if len(image) == 3 else image[0]
    low, high = np.percentile(image, (0.5, 99.5))
    return ((image - low) / max(high - low, 1e-6)).clip(0, 1)
