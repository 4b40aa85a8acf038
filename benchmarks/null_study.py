"""Whether the statistics of a report hold what they promise where there is no difference: simulated null studies.

    python benchmarks/null_study.py [--repetitions 200] [--experiments 4] [--samples 10000]

The Dice of a case is the logistic function of a normal variable: effects of its patient and of the case itself, which
all experiments share, and noise of the experiment. It is skewed to the left, and its mean is known. Goals: intervals of
95% cover the true value in 93 to 97% of the studies, and at most 5% of the studies have a difference with p < 0.05 by
Holm's correction. They are checked in every setting alone and in all together. A share is given with its Monte-Carlo
standard error: one whose 95% interval (± 1.96 standard errors) reaches across a goal's limit is borderline, since with
so many studies it might as well lie on the other side. The last two settings are no goals but limits: what happens if
patients are ignored, and if the experiments' trained folds differ by chance, which a bootstrap over cases cannot see.
"""

import argparse
import gc
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nnunetv2.study.statistics import mean_interval, paired_differences

CENTRE, CASE_SD, NOISE_SD, RUN_SD = 1.6, 0.8, 0.3, 0.1  # on the scale of logits: a mean Dice of 0.81
FOLDS = 5


@dataclass(frozen=True)
class Setting:
    """What a study is like.

    Attributes:
        title: in the table.
        patients: how many.
        most_cases: of a patient; a patient has one to so many.
        grouped: whether the statistics are told of the patients.
        run_sd: spread of the trained folds of one experiment.
        is_goal: whether the statistics should hold here.
    """

    title: str
    patients: int
    most_cases: int = 1
    grouped: bool = False
    run_sd: float = 0.0
    is_goal: bool = True


SETTINGS = (
    Setting("20 cases", 20),
    Setting("35 cases", 35),
    Setting("50 cases", 50),
    Setting("12 patients of 1 to 4 cases", 12, 4, grouped=True),
    Setting("25 patients of 1 to 3 cases", 25, 3, grouped=True),
    Setting("25 patients, which are ignored", 25, 3, is_goal=False),
    Setting(f"50 cases, {FOLDS} folds that differ", 50, run_sd=RUN_SD, is_goal=False),
)
# column -> the shares that are a goal
GOALS = {"means": (0.93, 0.97), "differences": (0.93, 0.97), "false positives": (0.0, 0.05)}


def main() -> None:
    """Simulate the studies of every setting and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("repetitions", 200), ("experiments", 4), ("samples", 10_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    gc.freeze()  # statsmodels collects garbage in every correction
    print(f"{args.repetitions} studies of {args.experiments} experiments; share of the studies ± its standard error")
    print(f"{'':34}" + "".join(f"{name:>26}" for name in GOALS))
    goals = []
    for number, setting in enumerate(SETTINGS):
        rng = np.random.default_rng(number)
        found = np.array([one_study(setting, args.experiments, args.samples, rng) for _ in range(args.repetitions)])
        print_row(setting.title, found, setting.is_goal)
        goals += [found] if setting.is_goal else []
    print_row(f"the first {len(goals)} together", np.concatenate(goals), True)


def print_row(title: str, found: np.ndarray, is_goal: bool) -> None:
    """Print the means of the columns with their standard errors over the studies, and whether they meet the goals."""
    errors = found.std(axis=0, ddof=1) / np.sqrt(len(found))
    cells = []
    for share, error, goal in zip(found.mean(axis=0), errors, GOALS.values(), strict=True):
        cells.append(f"{100 * share:.1f} ± {100 * error:.1f} % {verdict(share, error, *goal) if is_goal else '':10}")
    print(f"{title:34}" + "".join(f"{cell:>26}" for cell in cells), flush=True)


def verdict(share: float, error: float, low: float, high: float) -> str:
    """Say whether a share lies within a goal, in so far as its standard error tells."""
    if any(abs(share - limit) < 1.96 * error for limit in (low, high) if limit > 0):
        return "borderline"
    return "met" if low <= share <= high else "MISSED"


def one_study(setting: Setting, experiments: int, samples: int, rng: np.random.Generator) -> tuple[float, float, bool]:
    """Return the share of means and of differences that are covered, and whether there is any false positive."""
    frame, patients = simulated_dice(setting, experiments, rng)
    groups = patients if setting.grouped else None
    expected, seed = true_mean(setting.run_sd), int(rng.integers(2**32))
    intervals = [mean_interval(frame[name].to_numpy(), groups, samples=samples, seed=seed) for name in frame]
    pairs = paired_differences(frame, groups, samples=samples, seed=seed)
    means = np.mean([interval.low <= expected <= interval.high for interval in intervals])
    differences = np.mean((pairs["low"] <= 0) & (pairs["high"] >= 0))
    return float(means), float(differences), bool((pairs["p_holm"] < 0.05).any())


def simulated_dice(setting: Setting, experiments: int, rng: np.random.Generator) -> tuple[pd.DataFrame, list[str]]:
    """Return the Dice, case × experiment, and the patient of every case."""
    patient = np.repeat(np.arange(setting.patients), rng.integers(1, setting.most_cases + 1, setting.patients))
    cases = len(patient)
    half = np.sqrt(0.5)  # patient and case have equal shares of the variance, in noise too
    shared = rng.normal(0, half * CASE_SD, setting.patients)[patient] + rng.normal(0, half * CASE_SD, cases)
    noise = rng.normal(0, half * NOISE_SD, (setting.patients, experiments))[patient]
    noise += rng.normal(0, half * NOISE_SD, (cases, experiments))
    fold = rng.permutation(cases) % FOLDS
    noise += rng.normal(0, setting.run_sd, (FOLDS, experiments))[fold]
    names = [f"experiment_{i}" for i in range(experiments)]
    frame = pd.DataFrame(logistic(CENTRE + shared[:, None] + noise), columns=names)
    return frame, [f"patient_{i}" for i in patient]


def true_mean(run_sd: float) -> float:
    """The mean Dice of all cases there could be (Gauss-Hermite quadrature)."""
    points, weights = np.polynomial.hermite_e.hermegauss(60)
    spread = np.sqrt(CASE_SD**2 + NOISE_SD**2 + run_sd**2)
    return float(logistic(CENTRE + spread * points) @ weights / weights.sum())


def logistic(values: np.ndarray) -> np.ndarray:
    """The logistic function."""
    return 1 / (1 + np.exp(-values))


if __name__ == "__main__":
    main()
