"""The file of a study: what stands in it, with its defaults and rules."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Optional, Union

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from dinov3.configuration.schema import OneOf, Section, build, check, describe, read
from dinov3.configuration.yaml_files import ConfigFiles, find_file
from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.experiment.groups import read_groups
from nnunetv2.experiment.plans import check_name
from nnunetv2.experiment.schema import find_config, packaged_configs

# `Optional[...]` and `Union[...]` in the fields, as in the configuration of an experiment
# ruff: noqa: UP007, UP045

REQUIRED = ("name", "dataset", "experiments")
STUDIES = ConfigFiles((), keys="name, dataset and experiments", example="name=study")  # none is packaged
# The keys of an experiment that the study sets, and the key of the study that says how
SET_BY_STUDY = {
    "train.seed": "seeds",
    "train.num_training_cases": "num_training_cases",
    "train.training_groups": "groups",
}
ALL = "all"  # the fold that trains on every case
NotEmpty = Field(min_length=1)


@dataclass
class StudyExperiment(Section):
    """One of the experiments that a study compares: a value of `experiments`."""

    config: str = ""
    """a packaged configuration, or a path to a YAML file, relative to the file of the study"""
    overrides: list[str] = field(default_factory=list)
    """overrides of this experiment, such as `model.backbone_size=base`; they come after `common`"""


@dataclass
class StudyConfig(Section):
    """A study: the root of the YAML file."""

    name: str = ""
    """name of the study, part of the names of all its plans; required"""
    dataset: Union[int, str] = ""
    """data set, such as 111 or Dataset111_Name; required"""
    configuration: str = "2d"
    """a 2D configuration of the plans"""
    plans: str = "nnUNetPlans"
    """plans to derive from (`-p`)"""
    folds: Annotated[list[Union[NonNegativeInt, str]], NotEmpty] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    """folds of the cross-validation; or `[all]`: one training on all cases, which leaves none for a report"""
    seeds: Annotated[list[Optional[NonNegativeInt]], NotEmpty] = field(default_factory=lambda: [0])
    """a training per fold for each of them (`train.seed`); null: the experiment's own"""
    num_training_cases: Annotated[list[Optional[PositiveInt]], NotEmpty] = field(default_factory=lambda: [None])
    """a training per fold for each of them (`train.num_training_cases`); null: all cases of the fold"""
    common: list[str] = field(default_factory=list)
    """overrides of all experiments, such as `train.num_epochs=200`"""
    experiments: dict[str, Any] = field(default_factory=dict)
    """names of the experiments, each with `config` and `overrides`; required"""
    baseline: Optional[str] = None
    """the experiment that the others are compared with; null: the first"""
    groups: Optional[str] = None
    """CSV file with the columns `case` and `group` (such as the patient), relative to the file of the study: cases of a
    group are resampled together, and with `num_training_cases` drawn together"""
    tubular: list[PositiveInt] = field(default_factory=list)
    """labels of tubular structures, for which the report has clDice and the error of the number of components"""
    nsd_tolerance: PositiveFloat = 1.0
    """tolerance of the normalised surface Dice, in the unit of the spacing"""
    device: Annotated[str, OneOf("cuda", "cpu", "mps")] = "cuda"
    """where to train (`-device`)"""
    num_gpus: PositiveInt = 1
    """number of GPUs per training (`-num_gpus`)"""
    npz: bool = False
    """save the probabilities of the validation (`--npz`), from which the report tells the calibration"""

    def problems(self) -> Iterator[str]:
        """Yield what is impossible about the values."""
        for name, values in {self.name: {}, **self.experiments}.items():
            yield from _name_problems(name)
            yield from _experiment_problems(name, values) if name in self.experiments else ()
        if not self.experiments:
            yield "experiments: a study needs at least one"
        elif self.baseline is not None and self.baseline not in self.experiments:
            yield f"baseline: allowed: {', '.join(self.experiments)}, found {self.baseline!r}"
        if len(self.folds) > 1 and ALL in self.folds:
            yield f"folds: {ALL} stands alone, because it trains on the cases that the other folds validate on"
        for key in ("folds", "seeds", "num_training_cases"):
            values = [str(value) for value in getattr(self, key)]
            yield from (
                f"{key}: {value} stands there twice" for value in sorted(set(values)) if values.count(value) > 1
            )
        yield from _override_problems("common", self.common)

    @property
    def entries(self) -> dict[str, StudyExperiment]:
        """The experiments by name."""
        return {name: read(StudyExperiment, values) for name, values in self.experiments.items()}


def _name_problems(name: str) -> Iterator[str]:
    try:
        check_name(name)
    except ExperimentError as error:
        yield str(error)


def _experiment_problems(name: str, values: Any) -> Iterator[str]:
    prefix = f"experiments.{name}"
    if not isinstance(values, dict):
        yield f"{prefix}: a mapping with config and overrides, found {values!r}"
        return
    if not values.get("config"):
        yield f"{prefix}.config must name a configuration"
    yield from (describe(error, StudyExperiment, f"{prefix}.") for error in check(StudyExperiment, values))
    yield from _override_problems(f"{prefix}.overrides", values.get("overrides"))


def _override_problems(key: str, overrides: Any) -> Iterator[str]:
    for override in overrides if isinstance(overrides, list) else ():
        name = str(override).partition("=")[0].strip()
        if name in SET_BY_STUDY:
            yield f"{key}: {override!r} is set by the study's own key {SET_BY_STUDY[name]}"


def read_study(path: str | Path) -> StudyConfig:
    """Read and check the file of a study; the paths in it become absolute.

    Args:
        path: the YAML file.

    Raises:
        ExperimentError: there is no such file, it is no YAML, or its values are wrong; all that are wrong are named.
    """
    file = find_file(str(path))
    if file is None:
        raise ExperimentError(f"no such file: {str(path)!r}")
    try:
        values = STUDIES.read(file)
    except ExperimentError as error:
        hint = ""
        if "=[" in file.read_text(encoding="utf-8", errors="replace"):
            hint = "; an override with a list stands in quotes, as in 'train.patch_size=[512,512]'"
        raise ExperimentError(f"{error}{hint}") from error
    missing = [key for key in REQUIRED if key not in values]
    if missing:
        raise ExperimentError(f"{path}: {', '.join(missing)} must be given")
    study = build(StudyConfig, values, str(path))
    for experiment in study.experiments.values():
        experiment["config"] = _config_of(experiment["config"], file)
    if study.groups is not None:
        study.groups = _groups_of(study.groups, file)
    return study


def _config_of(name_or_path: str, study_file: Path) -> str:
    if name_or_path in packaged_configs():
        return name_or_path
    try:
        return str(find_config(name_or_path, study_file.parent).absolute())
    except ExperimentError as error:
        raise ExperimentError(f"{study_file}: {error}") from error


def _groups_of(name: str, study_file: Path) -> str:
    path = find_file(name, study_file.parent)
    if path is None:
        raise ExperimentError(f"{study_file}: groups: no such file: {name!r}")
    try:
        read_groups(path)
    except ExperimentError as error:
        raise ExperimentError(f"{study_file}: groups: {error}") from error
    return str(path.absolute())
