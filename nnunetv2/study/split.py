"""The split into folds, made before trainings that run at the same time would make it."""

from pathlib import Path

import numpy as np

from nnunetv2.experiment.plans import write_json
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.vit.training_cases import default_split

SPLIT = "splits_final.json"


def new_split(cases: Path) -> list[dict[str, list[str]]]:
    """Return the split that nnU-Net's trainer would write.

    Args:
        cases: the folder with the preprocessed cases.

    Raises:
        ExperimentError: there are too few cases for it.
    """
    identifiers = infer_dataset_class(str(cases)).get_identifiers(str(cases))
    folds = default_split(list(np.sort(identifiers)))
    return [{part: [str(case) for case in fold[part]] for part in ("train", "val")} for fold in folds]


def write_split(folder: Path, split: list[dict[str, list[str]]]) -> None:
    """Write a split where nnU-Net's trainer looks for it."""
    write_json(folder / SPLIT, split)
