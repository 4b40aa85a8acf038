"""Which of a fold's training cases a training uses: all of them, or a nested subset that the seed decides on."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from nnunetv2.experiment.dataset import DEFAULT_FOLDS
from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.experiment.plans import read_json

NUMBER_KEY, GROUPS_KEY = "train.num_training_cases", "train.training_groups"


def choose_cases(
    cases: Sequence[str], number: int | None, seed: int | None, groups: dict[str, str] | None = None
) -> list[str]:
    """Choose training cases. Smaller subsets are part of larger ones of the same seed.

    The order in which they are taken is that of a hash of the seed and the name, which no release of a library changes.

    Args:
        cases: the training cases of a fold.
        number: how many to choose; None: all of them.
        seed: of the training; None counts as 0.
        groups: case to group: whole groups are taken, in turn, as long as they fit, so that there may be fewer cases
            than asked for.

    Returns:
        The cases chosen, in the order that they were given in.

    Raises:
        ExperimentError: there are fewer cases than asked for, a case has no group, or the first group does not fit.
    """
    if number is None:
        return list(cases)
    if number > len(cases):
        raise ExperimentError(f"{NUMBER_KEY} is {number}, but the fold has only {len(cases)} training cases")
    chosen = _shuffled(cases, seed)[:number] if groups is None else _whole_groups(cases, number, seed, groups)
    return [case for case in cases if case in chosen]


def _shuffled(names: Iterable[str], seed: int | None) -> list[str]:
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed or 0} {name}".encode()).digest())


def _whole_groups(cases: Sequence[str], number: int, seed: int | None, groups: dict[str, str]) -> set[str]:
    without = [case for case in cases if case not in groups]
    if without:
        raise ExperimentError(f"{GROUPS_KEY} has no group for {len(without)} training cases, such as {without[0]!r}")
    members: dict[str, list[str]] = {}
    for case in cases:
        members.setdefault(groups[case], []).append(case)
    chosen: set[str] = set()
    for group in _shuffled(members, seed):
        if len(chosen) + len(members[group]) > number:
            break  # a later one that fits would leave out what a larger subset has
        chosen.update(members[group])
    if not chosen:
        raise ExperimentError(
            f"{NUMBER_KEY} is {number}, but the first group, {group!r}, has {len(members[group])} training cases"
        )
    return chosen


def training_cases_of(folder: Path, data_identifier: str, fold: int | str) -> list[str]:
    """Return the training cases of a fold as nnU-Net's trainer will find or split them.

    Args:
        folder: the preprocessed data set.
        data_identifier: name of its folder of cases.
        fold: number of the fold, or `all`.
    """
    splits = folder / "splits_final.json"
    if fold != "all" and splits.is_file():
        return read_json(splits)[fold]["train"]
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class  # loads torch

    cases_folder = str(folder / data_identifier)
    cases = sorted(infer_dataset_class(cases_folder).get_identifiers(cases_folder))
    return cases if fold == "all" else list(default_split(cases)[fold]["train"])


def default_split(cases: Sequence[str]) -> list[dict[str, Sequence[str]]]:
    """Split sorted cases as nnU-Net's trainer does without a `splits_final.json`: `train` and `val` per fold.

    Raises:
        ExperimentError: there are fewer cases than folds.
    """
    if len(cases) < DEFAULT_FOLDS:
        raise ExperimentError(
            f"nnU-Net's split into {DEFAULT_FOLDS} folds needs at least {DEFAULT_FOLDS} cases, found {len(cases)}: "
            "write a splits_final.json beside the plans, or train on the fold all"
        )
    from nnunetv2.utilities.crossval_split import generate_crossval_split  # loads scikit-learn

    return generate_crossval_split(cases, seed=12345, n_splits=DEFAULT_FOLDS)
