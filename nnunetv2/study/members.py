"""What a report compares: the trained folds of the experiments."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Member:
    """One trained fold.

    Attributes:
        experiment: its name in the report.
        fold: a number, or `all`.
        seed: of the training; None: not set.
        num_training_cases: how many of the fold's training cases it saw; None: all.
        folder: `fold_<fold>` in the folder of the trained model.
        predictions: where its predictions are in the folder.
    """

    experiment: str
    fold: str
    seed: int | None
    num_training_cases: int | None
    folder: Path
    predictions: str = "validation"


@dataclass(frozen=True)
class Comparison:
    """The trained folds that a report compares.

    Attributes:
        name: of the comparison.
        dataset: full name of the data set.
        configuration: of the plans, such as `2d`.
        members: the trained folds.
        baseline: the experiment that the others are compared with.
        groups: case -> group, such as the patient; None: every case is its own.
        tubular: labels of tubular structures.
        nsd_tolerance: of the normalised surface Dice, in the unit of the spacing.
        missing: sentences on runs that are missing or failed.
    """

    name: str
    dataset: str
    configuration: str
    members: list[Member]
    baseline: str
    groups: dict[str, str] | None
    tubular: list[int]
    nsd_tolerance: float
    missing: list[str]
