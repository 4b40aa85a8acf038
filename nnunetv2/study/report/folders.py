"""What a report compares where no study started the trainings: folders of trained models."""

from collections.abc import Sequence
from pathlib import Path

from dinov3.errors import ExperimentError
from nnunetv2.experiment.dataset import find_dataset
from nnunetv2.paths import nnUNet_results
from nnunetv2.study.members import Comparison, Member


def comparison_of_folders(
    dataset: str,
    configuration: str,
    experiments: Sequence[str],
    *,
    folds: Sequence[str] | None = None,
    baseline: str | None = None,
    groups: dict[str, str] | None = None,
    tubular: Sequence[int] = (),
    nsd_tolerance: float = 1.0,
) -> Comparison:
    """Return the trained folds of models.

    Args:
        dataset: name or number.
        configuration: of the plans, such as `2d`.
        experiments: names of plans, or of folders Trainer__Plans__configuration; `NAME=` before one names it in the
            report.
        folds: numbers, or `all`; None: those that are there.
        baseline: one of the names; None: the first.
        groups: case -> group.
        tubular: labels of tubular structures.
        nsd_tolerance: of the normalised surface Dice.

    Raises:
        ExperimentError: a name is unknown, ambiguous or given twice, or a fold is not there.
    """
    dataset = find_dataset(dataset)
    models = _named_models(dataset, configuration, experiments)
    if baseline is not None and baseline not in models:
        raise ExperimentError(f"--baseline {baseline!r} is none of the experiments; allowed: {', '.join(models)}")
    members = [
        Member(name, fold, None, None, folder / f"fold_{fold}")
        for name, folder in models.items()
        for fold in (_folds_of(folder) if folds is None else _checked(folder, folds))
    ]
    return Comparison(
        name=f"{' vs. '.join(models)} on {dataset}",
        dataset=dataset,
        configuration=configuration,
        members=members,
        baseline=baseline or next(iter(models)),
        groups=groups,
        tubular=list(tubular),
        nsd_tolerance=nsd_tolerance,
        missing=[],
    )


def _named_models(dataset: str, configuration: str, experiments: Sequence[str]) -> dict[str, Path]:
    results = Path(str(nnUNet_results)) / dataset
    existing = sorted(path for path in results.glob(f"*__*__{configuration}") if path.is_dir())
    models: dict[str, Path] = {}
    for experiment in experiments:
        name, model = _name_and_model(experiment, existing)
        if name in models:
            raise ExperimentError(f"two experiments have the name {name!r}")
        models[name] = _model_folder(f"{dataset}, {configuration}", model, existing)
    return models


def _name_and_model(experiment: str, existing: list[Path]) -> tuple[str, str]:
    """Split at the `=` that has an existing model after it, as names of plans may have one too."""
    parts = experiment.split("=")
    splits = [("=".join(parts[:i]), "=".join(parts[i:])) for i in range(len(parts))]
    for name, model in splits:
        if _matching(model, existing):
            return name or model, model
    name, model = splits[min(1, len(splits) - 1)]
    return name or model, model


def _matching(model: str, existing: list[Path]) -> list[Path]:
    return [path for path in existing if model in (path.name, path.name.split("__")[1])]


def _model_folder(place: str, model: str, existing: list[Path]) -> Path:
    matching = _matching(model, existing)
    if len(matching) == 1:
        return matching[0]
    if matching:
        names = ", ".join(path.name for path in matching)
        raise ExperimentError(
            f"several trainers were trained with the plans {model!r}; name one of the folders: {names}"
        )
    names = ", ".join(path.name for path in existing) or "none"
    raise ExperimentError(f"no training {model!r} of {place}; existing: {names}")


def _folds_of(folder: Path) -> list[str]:
    folds = sorted(path.name.removeprefix("fold_") for path in folder.glob("fold_*") if path.is_dir())
    if not folds:
        raise ExperimentError(f"no fold was trained in {folder}")
    # `all` has seen the validation cases of the others
    return [fold for fold in folds if fold != "all"] or folds


def _checked(folder: Path, folds: Sequence[str]) -> list[str]:
    for fold in folds:
        if not (folder / f"fold_{fold}").is_dir():
            names = ", ".join(path.name.removeprefix("fold_") for path in sorted(folder.glob("fold_*"))) or "none"
            raise ExperimentError(f"{folder.name} has no fold {fold}; existing: {names}")
    return list(dict.fromkeys(folds))
