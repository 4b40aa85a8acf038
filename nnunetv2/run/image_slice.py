"""A slice of an image, read and preprocessed as nnU-Net does it."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinov3.errors import ExperimentError, in_one_line
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

CHANNEL_DIGITS = 4  # nnU-Net's: CASE_0000.png


class Slice(NamedTuple):
    """A slice as nnU-Net preprocesses it.

    Attributes:
        name: what to call it in the picture.
        image: (C, H, W), float32.
        truth: labels (H, W); None if there are none.
    """

    name: str
    image: np.ndarray
    truth: np.ndarray | None


def read_slice(predictor: nnUNetPredictor, images: list[Path], truth: Path | None, number: int | None) -> Slice:
    """Read an image and preprocess it as nnU-Net does; take one slice of it.

    Args:
        predictor: with a model.
        images: the file of the first channel, or those of all channels.
        truth: the label file, if there is one.
        number: of the slice in the file; None: the middle one of what nnU-Net does not crop away.

    Raises:
        ExperimentError: a file cannot be read or does not fit, or there is no such slice.
    """
    data, labels, properties = read_files(predictor, channel_files(predictor, images), truth)
    preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
    data, labels, properties = preprocessor.run_case_npy(
        *(data, labels, properties),
        *(predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json),
    )
    first = int(properties["bbox_used_for_cropping"][0][0])  # empty slices at the ends are cropped away
    last = first + data.shape[1] - 1
    number = (first + last) // 2 if number is None else number
    if not first <= number <= last:
        raise ExperimentError(f"--slice must be from {first} to {last} for {images[0].name}, found {number}")
    name = images[0].name.removesuffix(predictor.dataset_json["file_ending"]).removesuffix("_" + "0" * CHANNEL_DIGITS)
    name = f"{name}, slice {number}" if properties["shape_before_cropping"][0] > 1 else name
    chosen = None if truth is None else labels[0, number - first]
    return Slice(name, data[:, number - first], chosen)


def channel_files(predictor: nnUNetPredictor, images: list[Path]) -> list[Path]:
    """Return the files of all channels; where only the first is given, those beside it.

    Raises:
        ExperimentError: a file is missing, or has another ending than those of the training.
    """
    ending = predictor.dataset_json["file_ending"]
    for path in images:
        if not path.is_file():
            raise ExperimentError(f"-i: no such file: {path}")
        if not path.name.endswith(ending):
            raise ExperimentError(f"-i: {path.name} must end in {ending}, as the images of the training do")
    first = "_" + "0" * CHANNEL_DIGITS + ending
    if len(images) > 1 or not images[0].name.endswith(first):
        return images
    case = images[0].name.removesuffix(first)
    return sorted(images[0].parent.glob(f"{case}_{'[0-9]' * CHANNEL_DIGITS}{ending}"))


def read_files(
    predictor: nnUNetPredictor, images: list[Path], truth: Path | None
) -> tuple[np.ndarray, np.ndarray | None, dict[str, Any]]:
    """Read image (C, Z, H, W), labels (1, Z, H, W) and properties with the reader that the plans name.

    Raises:
        ExperimentError: a file cannot be read, or does not fit the model or the image.
    """
    if truth is not None and not truth.is_file():
        raise ExperimentError(f"--truth: no such file: {truth}")
    reader = predictor.plans_manager.image_reader_writer_class()
    try:
        data, properties = reader.read_images([str(path) for path in images])
        labels = None if truth is None else reader.read_seg(str(truth))[0]
    except Exception as error:  # every reader has its own
        names = ", ".join(path.name for path in (*images, truth) if path is not None)
        raise ExperimentError(f"cannot read {names}: {in_one_line(error)}") from error
    wanted = determine_num_input_channels(
        predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
    )
    if len(data) != wanted:
        raise ExperimentError(f"-i: the model takes {wanted} channels, found {len(data)} in {len(images)} files")
    if labels is not None and labels.shape[1:] != data.shape[1:]:
        raise ExperimentError(f"--truth has the shape {labels.shape[1:]}, the image {data.shape[1:]}")
    return data, labels, properties
