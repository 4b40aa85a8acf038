"""All that is checked before the first run of a study starts, with what `nnUNetv2_train_vit` checks itself with."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinov3.configuration.schema import refuse
from nnunetv2.experiment.dataset import (
    check_fold,
    find_dataset,
    preprocessed_folder,
    read_base_plans,
    read_dataset_json,
)
from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.experiment.groups import read_groups
from nnunetv2.experiment.plans import (
    check_experiment,
    differences_between,
    differences_from,
    listed,
    read_json,
    read_plans,
    resolve,
)
from nnunetv2.paths import nnUNet_results
from nnunetv2.run.arguments import TrainingArguments, parse_arguments
from nnunetv2.run.cpu_cores import check_process_counts
from nnunetv2.run.train_experiment import base_plans, check_training_cases, derive, read_experiment
from nnunetv2.run.training_commands import TRAIN_VIT
from nnunetv2.study.config import ALL, StudyConfig
from nnunetv2.study.report.classes import check_tubular, foreground_classes
from nnunetv2.study.runs import Run, study_folder
from nnunetv2.study.state import CHECKPOINTS, has_checkpoint, is_validated

if TYPE_CHECKING:
    import torch

# nnU-Net leaves the final and the best checkpoint; while it trains there are the latest and the one that is written.
KEPT_CHECKPOINTS = 2
MORE_WHILE_TRAINING = 2


def check_runs(study: StudyConfig, runs: Sequence[Run], device: "torch.device | None", num_workers: int) -> None:
    """Derive the plans of all experiments and check everything that their trainings need; create the split.

    Args:
        study: the study.
        runs: all of its runs.
        device: where they will train; None: on another machine.
        num_workers: number of trainings that run at the same time.

    Raises:
        ExperimentError: something is wrong that the user can put right; all experiments that are wrong are named.
    """
    from nnunetv2.experiment.disk import check_disk_space
    from nnunetv2.study.split import SPLIT, write_split

    check_process_counts()
    folder = preprocessed_folder(find_dataset(str(study.dataset)))
    check_tubular(study.tubular, foreground_classes(read_dataset_json(folder), study.tubular), folder.name)
    for fold in study.folds:
        check_fold(folder, str(fold))
    has_split = (folder / SPLIT).is_file()
    split = read_json(folder / SPLIT) if has_split else _new_split(study, folder)
    _check_groups(study, split)
    needed, sizes, problems = 0, [0], []
    for name in dict.fromkeys(run.plans_name for run in runs):
        same_plans = [run for run in runs if run.plans_name == name]
        try:
            size = _check_plans(same_plans, folder, device)
        except ExperimentError as error:
            problems.append(f"experiments.{same_plans[0].experiment}: {error}")
            continue
        needed += sum(_bytes_missing(run, size) for run in same_plans if not is_validated(run))
        sizes.append(size)
    refuse(dict.fromkeys(problems), f"the study {study.name!r}")
    check_disk_space(Path(str(nnUNet_results)), needed + num_workers * MORE_WHILE_TRAINING * max(sizes))
    _create_folder(study)
    if split and not has_split:
        write_split(folder, split)


def _check_plans(runs: Sequence[Run], folder: Path, device: "torch.device | None") -> int:
    """Check the plans that some runs share; return the size of one of their checkpoints, in bytes."""
    from nnunetv2.experiment.derive import build_on_meta, count_classes
    from nnunetv2.experiment.disk import checkpoint_bytes

    dataset_json = read_dataset_json(folder)
    args = parse_arguments(TRAIN_VIT, runs[0].start)
    args.check()
    begun = all(has_checkpoint(run) or is_validated(run) for run in runs)
    if begun:  # the pretrained weights are in the checkpoints
        args = dataclasses.replace(args, c=True)
    config = read_experiment(args)
    stored = {file: read_plans(file.parent, file.stem) for file in _plans_files(runs[0], folder)}
    if begun:
        plans = _begun_plans(args, stored, config, dataset_json)
    else:
        plans = derive(args, config, base_plans(args, folder), dataset_json, device)
        for run in runs:
            check_training_cases(folder, resolve(plans, args.configuration), check_fold(folder, run.fold))
        for file, former in stored.items():
            _refuse_changes(file, differences_between(former, json.loads(json.dumps(plans))))
    configuration = resolve(plans, args.configuration)
    return checkpoint_bytes(configuration, build_on_meta(configuration, count_classes(plans, dataset_json)))


def _begun_plans(
    args: TrainingArguments, stored: dict[Path, dict[str, Any]], config: Any, dataset_json: dict[str, Any]
) -> dict[str, Any]:
    for file, plans in stored.items():
        check_experiment(plans, args.configuration)
        _refuse_changes(file, differences_from(plans, args.configuration, dataset_json, config))
    if not stored:
        raise ExperimentError("its plans are gone, but there are checkpoints of it")
    return next(iter(stored.values()))


def _plans_files(run: Run, folder: Path) -> list[Path]:
    """The plans of a run that was started before; nnU-Net copies them into the folder of the results."""
    files = (folder / f"{run.plans_name}.json", run.folder.parent / "plans.json")
    return [file for file in files if file.is_file() and (file.parent == folder or _is_json(file))]


def _is_json(file: Path) -> bool:
    try:  # nnU-Net writes it in place at every start of a training: a kill may have left half of it
        json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


def _refuse_changes(file: Path, differences: Any) -> None:
    found = list(differences)
    if found:
        raise ExperimentError(
            f"it was changed since it was started (then → now):\n{listed(found)}\n"
            f"undo the change, or give the experiment another name; started as {file}"
        )


def _bytes_missing(run: Run, size: int) -> int:
    found = [run.folder / name for name in CHECKPOINTS if (run.folder / name).is_file()]
    return max(0, KEPT_CHECKPOINTS - len(found)) * size


def _create_folder(study: StudyConfig) -> None:
    folder = study_folder(study)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExperimentError(f"cannot create {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise ExperimentError(f"cannot write into {folder}")


def _check_groups(study: StudyConfig, split: list[dict[str, list[str]]]) -> None:
    """Check that the report will have a group for every validation case."""
    if study.groups is None or study.folds == [ALL]:
        return
    groups = read_groups(Path(study.groups))
    without = [case for fold in study.folds for case in split[fold]["val"] if case not in groups]
    if without:
        raise ExperimentError(f"groups: {len(without)} validation cases have no group, such as {without[0]!r}")


def _new_split(study: StudyConfig, folder: Path) -> list[dict[str, list[str]]]:
    """The split that nnU-Net's trainer would write; empty where all cases are trained on."""
    from nnunetv2.study.split import new_split

    if study.folds == [ALL]:
        return []
    plans = read_base_plans(folder, study.plans, study.configuration)
    return new_split(folder / resolve(plans, study.configuration)["data_identifier"])
