"""The split into folds, made before trainings that run at the same time would make it."""

from pathlib import Path

import numpy as np

from nnunetv2.experiment.plans import write_json
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.vit.training_cases import default_split


def create_split(folder: Path, cases: Path) -> None:
    """Write the split that nnU-Net's trainer would write, unless there is one.

    Args:
        folder: of the preprocessed data set.
        cases: the folder in it with the preprocessed cases.
    """
    file = folder / "splits_final.json"
    if not file.is_file():
        identifiers = infer_dataset_class(str(cases)).get_identifiers(str(cases))
        folds = default_split(list(np.sort(identifiers)))
        write_json(file, [{part: [str(case) for case in fold[part]] for part in ("train", "val")} for fold in folds])
