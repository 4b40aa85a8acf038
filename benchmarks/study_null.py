"""Statistics of a study without any difference: how often intervals cover the truth, and tests find something.

    python benchmarks/study_null.py [--repetitions 200] [--cases 50] [--experiments 4]

Every case has a difficulty of its own, the same for all experiments; experiments differ by noise alone. Dice values are
those of a beta distribution, skewed as measured ones are.
"""

import argparse
from itertools import combinations

import numpy as np
import pandas as pd

from nnunetv2.study.statistics import mean_interval, paired_differences

DIFFICULTY, NOISE = (18.0, 4.0), 0.03


def simulated(rng: np.random.Generator, cases: int, experiments: int) -> tuple[pd.DataFrame, float]:
    """Return case × experiment, and the mean of the distribution that the values are of."""
    difficulty = rng.beta(*DIFFICULTY, size=(cases, 1))
    values = difficulty + rng.normal(scale=NOISE, size=(cases, experiments))
    return pd.DataFrame(values, columns=[f"e{i}" for i in range(experiments)]), DIFFICULTY[0] / sum(DIFFICULTY)


def main() -> None:
    """Repeat the study and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("repetitions", 200), ("cases", 50), ("experiments", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    means, differences, found = [], [], []
    for repetition in range(args.repetitions):
        frame, truth = simulated(np.random.default_rng(repetition), args.cases, args.experiments)
        for name in frame:
            interval = mean_interval(frame[name].to_numpy(), samples=2000, seed=repetition)
            means.append(interval.low <= truth <= interval.high)
        table = paired_differences(frame, samples=2000, seed=repetition)
        differences += list((table["low"] <= 0) & (table["high"] >= 0))
        found.append(bool((table["p_holm"] < 0.05).any()))
    pairs = len(list(combinations(range(args.experiments), 2)))
    print(f"{args.repetitions} studies of {args.cases} cases, {args.experiments} equal experiments, {pairs} pairs each")
    print(f"  95% intervals of the mean that cover it: {np.mean(means):.1%}")
    print(f"  95% intervals of the differences that cover 0: {np.mean(differences):.1%}")
    print(f"  studies with a pair of p (Holm) < 0.05: {np.mean(found):.1%}")


if __name__ == "__main__":
    main()
