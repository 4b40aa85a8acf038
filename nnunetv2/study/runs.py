"""The runs of a study: one training for each experiment, fold, seed and number of cases."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nnunetv2.experiment.dataset import find_dataset
from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.experiment.plans import check_name
from nnunetv2.experiment.schema import find_config, read_values
from nnunetv2.paths import nnUNet_results
from nnunetv2.study.config import StudyConfig, StudyExperiment
from nnunetv2.training.nnUNetTrainer.vit_config import ViTnnUNetConfig


@dataclass(frozen=True)
class Run:
    """One training of a study.

    Attributes:
        experiment: its name in the study.
        fold: a number, or `all`.
        seed: `train.seed`; None: as the experiment says.
        num_training_cases: None: all cases of the fold.
        plans_name: of its derived plans.
        trainer: name of the trainer class.
        folder: of the trained fold.
        log: the file that gets the output of its command.
        start: arguments of `nnUNetv2_train_vit` that start it.
        resume: those that continue it from its checkpoint.
    """

    experiment: str
    fold: str
    seed: int | None
    num_training_cases: int | None
    plans_name: str
    trainer: str
    folder: Path
    log: Path
    start: tuple[str, ...]
    resume: tuple[str, ...]

    @property
    def name(self) -> str:
        """The run in words: `upernet, fold 0, seed 1, 4 cases`."""
        seed = () if self.seed is None else (f"seed {self.seed}",)
        cases = () if self.num_training_cases is None else (f"{self.num_training_cases} cases",)
        return ", ".join((self.experiment, f"fold {self.fold}", *seed, *cases))

    @property
    def lock(self) -> Path:
        """The file that its training locks while it runs."""
        return self.log.with_suffix(".lock")

    @property
    def failure(self) -> Path:
        """The file that says why it failed."""
        return self.log.with_suffix(".failed")


def study_folder(study: StudyConfig) -> Path:
    """The folder of a study's logs, beside the trained models of the data set.

    Raises:
        ExperimentError: there is no such data set.
    """
    return Path(str(nnUNet_results)) / find_dataset(str(study.dataset)) / f"study_{study.name}"


def expand(study: StudyConfig) -> list[Run]:
    """Return the runs of a study; all experiments of a fold stand together, so that early ones can be compared.

    Raises:
        ExperimentError: there is no such data set or configuration, or two runs would have the same name.
    """
    folder = study_folder(study)
    entries = study.entries
    trainers = {name: _trainer(name, study, entry) for name, entry in entries.items()}
    runs = [
        _run(study, folder, name, entry, trainers[name], str(fold), seed, num_cases)
        for num_cases in study.num_training_cases
        for seed in study.seeds
        for fold in study.folds
        for name, entry in entries.items()
    ]
    taken: dict[str, Run] = {}
    for run in runs:
        first = taken.setdefault(str(run.log).casefold(), run)
        if first is not run:
            raise ExperimentError(f"two runs would both be called {run.log.stem}: {first.name}; {run.name}")
    return runs


def _trainer(name: str, study: StudyConfig, entry: StudyExperiment) -> str:
    values = read_values(find_config(entry.config), (*study.common, *entry.overrides))
    trainer = values.get("trainer", ViTnnUNetConfig.trainer)
    if not isinstance(trainer, str):
        raise ExperimentError(f"experiments.{name}: trainer must be str, found {trainer!r}")
    return trainer


def _run(
    study: StudyConfig,
    folder: Path,
    experiment: str,
    entry: StudyExperiment,
    trainer: str,
    fold: str,
    seed: int | None,
    num_cases: int | None,
) -> Run:
    name = f"{study.name}_{experiment}"
    name += f"_seed{seed}" if len(study.seeds) > 1 and seed is not None else ""
    name += f"_n{num_cases}" if len(study.num_training_cases) > 1 and num_cases is not None else ""
    check_name(name)
    plans_name = f"{study.plans}_{name}"
    overrides = (*study.common, *entry.overrides, *_overrides_of(study, seed, num_cases))
    place = (str(study.dataset), study.configuration, fold)
    options = ("--name", name, "-p", study.plans, "-device", study.device, "-num_gpus", str(study.num_gpus))
    options += ("--npz",) if study.npz else ()
    return Run(
        experiment=experiment,
        fold=fold,
        seed=seed,
        num_training_cases=num_cases,
        plans_name=plans_name,
        trainer=trainer,
        folder=folder.parent / f"{trainer}__{plans_name}__{study.configuration}" / f"fold_{fold}",
        log=folder / f"{plans_name}__fold_{fold}.log",
        start=(*place, "--config", entry.config, *options, *overrides),
        resume=(*place, "--c", *options),
    )


def _overrides_of(study: StudyConfig, seed: int | None, num_cases: int | None) -> Iterator[str]:
    if seed is not None:
        yield f"train.seed={seed}"
    # also null, since the experiment's file may say a number
    yield f"train.num_training_cases={'null' if num_cases is None else num_cases}"
    if num_cases is not None and study.groups is not None:
        quoted = study.groups.replace("'", "''")  # overrides are YAML, where an unquoted ` #` begins a comment
        yield f"train.training_groups='{quoted}'"
