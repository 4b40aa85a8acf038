"""What the report on a study compares."""

from pathlib import Path

from nnunetv2.experiment.dataset import find_dataset
from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.experiment.groups import read_groups
from nnunetv2.study.config import ALL, StudyConfig
from nnunetv2.study.members import Comparison, Member
from nnunetv2.study.runs import Run, expand
from nnunetv2.study.state import failure_of, state


def comparison_of(study: StudyConfig) -> Comparison:
    """Return the finished runs of a study, and sentences on the others.

    Raises:
        ExperimentError: none is finished, or all were trained on every case.
    """
    if study.folds == [ALL]:
        raise ExperimentError(f"folds: {ALL} trains on every case, so that no validation is left to report on")
    states = {run: state(run) for run in expand(study)}
    finished = [run for run, current in states.items() if current == "finished"]
    if not finished:
        raise ExperimentError(f"no run of the study {study.name!r} is finished: nnUNetv2_vit_study run")
    return Comparison(
        name=study.name,
        dataset=find_dataset(str(study.dataset)),
        configuration=study.configuration,
        members=[Member(r.experiment, r.fold, r.seed, r.num_training_cases, r.folder) for r in finished],
        baseline=study.baseline or next(iter(study.experiments)),
        groups=None if study.groups is None else read_groups(Path(study.groups)),
        tubular=list(study.tubular),
        nsd_tolerance=study.nsd_tolerance,
        missing=[_missing(run, current) for run, current in states.items() if current != "finished"],
    )


def _missing(run: Run, current: str) -> str:
    return failure_of(run) if current == "failed" else f"{run.name} is {current}"
