"""What a training needs on disk, checked in milliseconds: data set, plans, configuration, preprocessed cases, fold."""

import os
import re
from pathlib import Path
from typing import Any

from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.experiment.plans import check_configuration, read_json, read_plans, resolve
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results

NEEDED_KEYS = ("data_identifier", "patch_size", "batch_size", "normalization_schemes")
DEFAULT_FOLDS = 5  # nnU-Net's cross-validation, where there is no splits_final.json yet


def find_dataset(name_or_id: str) -> str:
    """Return the full name of a data set, such as `Dataset101_LESAV`, from its name or number.

    Raises:
        ExperimentError: nnU-Net's variables are not set, or no or several data sets answer to the name or number.
    """
    for variable in (nnUNet_preprocessed, nnUNet_results):
        if not variable.is_set():
            raise ExperimentError(f"the environment variable {variable.env_var_name} is not set")
        if os.path.exists(str(variable)) and not os.path.isdir(str(variable)):
            raise ExperimentError(f"{variable.env_var_name} is not a folder: {str(variable)!r}")
    roots = [Path(str(root)) for root in (nnUNet_preprocessed, nnUNet_raw) if root.is_set()]
    existing = sorted({p.name for root in roots if root.is_dir() for p in root.iterdir() if _is_dataset(p.name)})
    if re.fullmatch(r"[0-9]{1,3}", name_or_id):
        found = [name for name in existing if int(name[7:10]) == int(name_or_id)]
    else:
        found = [name for name in existing if name == name_or_id]
    if len(found) != 1:
        kind = "several data sets match" if found else "no data set matches"
        raise ExperimentError(f"{kind} {name_or_id!r}; existing: {', '.join(existing) or 'none'}")
    return found[0]


def _is_dataset(folder_name: str) -> bool:
    return re.fullmatch(r"Dataset\d{3}_.+", folder_name) is not None


def preprocessed_folder(dataset: str) -> Path:
    """The folder of a data set's plans and preprocessed cases.

    Raises:
        ExperimentError: the data set was not planned and preprocessed.
    """
    folder = Path(str(nnUNet_preprocessed)) / dataset
    if not (folder / "dataset.json").is_file():
        raise ExperimentError(
            f"{dataset} is not preprocessed in {folder} (variable {nnUNet_preprocessed.env_var_name}): run "
            + _preprocess_command(dataset, "2d")
        )
    return folder


def _preprocess_command(dataset: str, configuration: str) -> str:
    return f"nnUNetv2_plan_and_preprocess -d {int(dataset[7:10])} -c {configuration}"


def read_dataset_json(folder: Path) -> dict[str, Any]:
    """Read the `dataset.json` beside the plans.

    Raises:
        ExperimentError: it is no JSON, or its labels are not such as nnU-Net's.
    """
    path = folder / "dataset.json"
    content = read_json(path)
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, dict) or labels.get("background") != 0 or not all(map(_is_label, labels.values())):
        raise ExperimentError(
            f"{path}: labels must be a mapping of names to numbers (or lists of numbers, for regions), with "
            f"background: 0, found {labels!r}"
        )
    if any(isinstance(value, list) for value in labels.values()) and "regions_class_order" not in content:
        raise ExperimentError(f"{path}: labels that are regions need regions_class_order")
    return content


def _is_label(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(type(number) is int for number in values)


def read_base_plans(folder: Path, plans_name: str, configuration: str) -> dict[str, Any]:
    """Read plans and check that they hold a 2D configuration whose cases are preprocessed.

    Raises:
        ExperimentError: no such plans, no such 2D configuration, or no preprocessed cases.
    """
    plans = read_plans(folder, plans_name)
    check_configuration(plans, configuration)
    missing = [key for key in NEEDED_KEYS if resolve(plans, configuration).get(key) is None]
    if missing:
        raise ExperimentError(f"the plans {plans_name!r} lack {', '.join(missing)} in configuration {configuration!r}")
    cases = folder / resolve(plans, configuration)["data_identifier"]
    if not cases.is_dir() or not any(os.scandir(cases)):
        command = _preprocess_command(folder.name, configuration)
        raise ExperimentError(
            f"{folder.name} is not preprocessed for {configuration!r} ({cases} is empty): run {command}"
        )
    return plans


def check_fold(folder: Path, fold: str) -> int | str:
    """Return the fold as nnU-Net takes it: `all`, or a number that the data set's split has.

    Raises:
        ExperimentError: it is neither, or the file of the split cannot be read.
    """
    if fold == "all":
        return fold
    folds = _number_of_folds(folder / "splits_final.json")
    if fold not in map(str, range(folds)):
        raise ExperimentError(f"fold {fold!r} is not in the split of {folder.name}; allowed: all, 0 to {folds - 1}")
    return int(fold)


def _number_of_folds(splits: Path) -> int:
    if not splits.is_file():
        return DEFAULT_FOLDS
    remedy = "fix it, or delete it so that nnU-Net creates a new split"
    try:
        content = read_json(splits)
    except ExperimentError as error:  # nnU-Net writes it in place: a kill may have left half of it
        raise ExperimentError(f"{error}; {remedy}") from error
    is_split = isinstance(content, list) and all(
        isinstance(f, dict) and f.get("train") and f.get("val") for f in content
    )
    if not is_split or not content:
        raise ExperimentError(f"{splits} is not a list of folds, each with cases under train and val; {remedy}")
    return len(content)
