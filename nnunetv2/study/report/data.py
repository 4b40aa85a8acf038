"""The data set of a comparison, and the files that a report reads of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinov3.errors import ExperimentError, in_one_line
from nnunetv2.experiment.dataset import preprocessed_folder
from nnunetv2.experiment.plans import read_json
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name
from nnunetv2.study.members import Comparison
from nnunetv2.study.report.classes import ForegroundClass, check_tubular, foreground_classes


@dataclass(frozen=True)
class Data:
    """What there is to know of the data set to measure its predictions.

    Attributes:
        classes: foreground classes or regions.
        ignore_label: pixels of the truth that count for nothing.
        file_ending: of images and segmentations.
        reader: name of nnU-Net's class that reads them.
        truth_folder: of the label files.
        nsd_tolerance: of the normalised surface Dice.
    """

    classes: list[ForegroundClass]
    ignore_label: int | None
    file_ending: str
    reader: str
    truth_folder: Path
    nsd_tolerance: float

    @property
    def unit(self) -> str:
        """Of distances: millimetres, but pixels for the image formats that have no spacing."""
        return "px" if self.reader == "NaturalImage2DIO" else "mm"

    def truth_file(self, case: str) -> Path:
        """The label file of a case."""
        return self.truth_folder / f"{case}{self.file_ending}"

    def read_segmentation(self, path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
        """Read a segmentation and its spacing: (H, W), or (D, H, W) for a volume of more than one slice.

        Raises:
            ExperimentError: the file is missing or cannot be read.
        """
        if not path.is_file():
            raise ExperimentError(f"segmentation not found: {path}")
        try:
            array, properties = recursive_find_reader_writer_by_name(self.reader)().read_seg(str(path))
        except Exception as error:  # every reader has its own
            raise ExperimentError(f"cannot read {path}: {in_one_line(error)}") from error
        array, spacing = array[0], tuple(float(s) for s in properties["spacing"])
        return (array[0], spacing[1:]) if len(array) == 1 else (array, spacing)


def data_of(comparison: Comparison) -> Data:
    """Read what is common to all predictions of a comparison.

    Raises:
        ExperimentError: files of the data set or of the trained models are missing, or models differ in their classes.
    """
    truth_folder = preprocessed_folder(comparison.dataset) / "gt_segmentations"
    if not truth_folder.is_dir():
        raise ExperimentError(f"the label files of {comparison.dataset} are not in {truth_folder}: preprocess it again")
    models = sorted({member.folder.parent for member in comparison.members})
    described: dict[str, Path] = {}
    for model in models:
        dataset_json = read_json(model / "dataset.json")
        described.setdefault(repr((dataset_json["labels"], dataset_json["file_ending"])), model)
    if len(described) > 1:
        raise ExperimentError(f"labels differ between {' and '.join(str(m) for m in list(described.values())[:2])}")
    return _data_of_model(dataset_json, str(read_json(model / "plans.json")["image_reader_writer"]), comparison)


def _data_of_model(dataset_json: dict[str, Any], reader: str, comparison: Comparison) -> Data:
    classes = foreground_classes(dataset_json, comparison.tubular)
    check_tubular(comparison.tubular, classes, comparison.dataset)
    return Data(
        classes,
        dataset_json["labels"].get("ignore"),
        dataset_json["file_ending"],
        reader,
        preprocessed_folder(comparison.dataset) / "gt_segmentations",
        comparison.nsd_tolerance,
    )
