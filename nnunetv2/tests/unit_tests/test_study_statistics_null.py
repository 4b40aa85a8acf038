"""The statistics where values tie, cases depend on each other, runs are missing, or there is no difference at all."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nnunetv2.study.statistics import (
    critical_difference,
    fewest_cases,
    mean_interval,
    paired_differences,
    probability_of_being_best,
    spread,
)


def exact_p(differences: list[float]) -> float:
    """Two-sided signed-rank test by all signs that the differences could have had."""
    nonzero = np.array([difference for difference in differences if difference])
    ranks = stats.rankdata(np.abs(nonzero))
    signs = np.array(list(product((-1, 1), repeat=len(nonzero))))
    return float(np.mean(np.abs(signs @ ranks) >= abs(np.sign(nonzero) @ ranks) - 1e-9))


@pytest.mark.parametrize(
    "differences",
    [
        [1, 2, 3, 4, 5, *[0] * 15],  # the normal approximation of twenty cases says p = 0.043
        [1, 1, 1, 1, 2, 2, 2, *[0] * 13],
        [1, -1, 2, 2, -3, 3, 3, 3],
    ],
)
def test_signed_rank_is_exact_where_few_cases_differ(differences: list[float]) -> None:
    frame = pd.DataFrame({"a": np.array(differences, float), "b": 0.0})
    (row,) = paired_differences(frame, samples=100).itertuples()
    assert row.p == pytest.approx(exact_p(differences)) and row.n == len(differences)


def test_fewest_cases_of_a_significant_test() -> None:
    assert fewest_cases() == 6
    for experiments in (3, 4):
        pairs = experiments * (experiments - 1) // 2
        for cases in (fewest_cases(pairs) - 1, fewest_cases(pairs)):
            ordered = np.arange(1, cases + 1)[:, None] * 0.01 * np.arange(experiments)
            table = paired_differences(pd.DataFrame(ordered), samples=100)
            assert (table["p_holm"].min() < 0.05) == (cases == fewest_cases(pairs))


def test_interval_of_few_cases_is_about_students() -> None:
    values = stats.norm.ppf((np.arange(10) + 0.5) / 10)  # as normal as ten values can be
    interval = mean_interval(values)
    expected = stats.t.interval(0.95, 9, values.mean(), stats.sem(values))
    assert interval.high - interval.low == pytest.approx(expected[1] - expected[0], rel=0.05)


def test_intervals_cover_where_there_is_no_difference() -> None:
    rng = np.random.default_rng(0)
    intervals = [mean_interval(rng.normal(size=12), samples=1000) for _ in range(150)]
    covered = np.mean([interval.low <= 0 <= interval.high for interval in intervals])
    assert 0.9 <= covered <= 0.99  # the standard error is 1.8%


def test_cases_of_a_group_are_ranked_once() -> None:
    rng = np.random.default_rng(2)
    patients = pd.DataFrame(rng.normal(size=(8, 3)) + [0.8, 0, 0], columns=list("abc"))
    alone = critical_difference(patients)
    thrice = pd.concat([patients + shift for shift in (-0.1, 0, 0.1)], ignore_index=True)
    grouped = critical_difference(thrice, [f"patient_{i % 8}" for i in range(24)])
    assert grouped.distance == pytest.approx(alone.distance) and grouped.friedman_p == pytest.approx(alone.friedman_p)
    assert grouped.mean.to_numpy() == pytest.approx(alone.mean.to_numpy())
    assert critical_difference(thrice).friedman_p < alone.friedman_p


def test_equal_experiments_share_their_ranks() -> None:
    ranks = critical_difference(pd.DataFrame(np.repeat(np.arange(6.0)[:, None], 3, axis=1), columns=list("abc")))
    assert ranks.mean.tolist() == [2, 2, 2] and ranks.friedman_p == 1
    assert [set(names) for names in ranks.equal] == [set("abc")]


def test_seeds_are_compared_over_the_folds_that_all_have() -> None:
    runs = [("0", 0, 0.5), ("0", 1, 0.7), ("1", 0, 0.1)]  # the second seed lacks the difficult fold
    seeds, folds = spread(pd.DataFrame(runs, columns=["fold", "seed", "value"]))
    assert seeds == pytest.approx(0.2 / np.sqrt(2)) and folds == pytest.approx(0.5 / np.sqrt(2))
    alone = pd.DataFrame([("0", None, 0.5), ("1", None, 0.1)], columns=["fold", "seed", "value"])
    assert np.isnan(spread(alone)[0]) and spread(alone)[1] == pytest.approx(0.4 / np.sqrt(2))


def test_probability_of_being_best_resamples_whole_groups() -> None:
    # of two patients, the first with three cases, experiment a wins at the first; so it wins three of four samples
    frame = pd.DataFrame({"a": [1.0, 1.0, 1.0, 0.0], "b": [0.0, 0.0, 0.0, 1.0]})
    best = probability_of_being_best(frame, ["first"] * 3 + ["second"], samples=20_000)
    assert best.to_numpy() == pytest.approx([0.75, 0.25], abs=0.02)
    assert probability_of_being_best(frame.iloc[:0]).isna().all()


def test_interval_of_a_difference_is_scipys_percentile() -> None:
    frame = pd.DataFrame(np.random.default_rng(4).exponential(size=(20, 2)), columns=["a", "b"])
    (row,) = paired_differences(frame, samples=2000, seed=3).itertuples()
    level = 1 - 2 * stats.norm.sf(2.0930 * np.sqrt(20 / 19))  # 2.0930: Student's quantile of 19 degrees of freedom
    expected = stats.bootstrap(
        ((frame["a"] - frame["b"]).to_numpy(),),
        np.mean,
        n_resamples=2000,
        confidence_level=level,
        method="percentile",
        random_state=np.random.default_rng(3),
    )
    assert (row.low, row.high) == pytest.approx(tuple(expected.confidence_interval), abs=0.03)
