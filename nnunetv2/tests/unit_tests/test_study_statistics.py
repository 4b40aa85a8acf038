"""The statistics of a comparison against values worked out by hand, and against SciPy called directly."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nnunetv2.study.statistics import (
    critical_difference,
    mean_interval,
    paired_differences,
    pareto_front,
    probability_of_being_best,
    spread,
)


def test_interval_is_scipys_bootstrap() -> None:
    values = np.random.default_rng(1).normal(size=30)
    interval = mean_interval(values, samples=2000, seed=3)
    level = 1 - 2 * stats.norm.sf(2.0452 * np.sqrt(30 / 29))  # 2.0452: Student's quantile of 29 degrees of freedom
    rng = np.random.default_rng(3)
    expected = stats.bootstrap((values,), np.mean, n_resamples=2000, confidence_level=level, random_state=rng)
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(expected.confidence_interval.low, abs=0.02)
    assert interval.high == pytest.approx(expected.confidence_interval.high, abs=0.02)


def test_groups_are_resampled_as_a_whole() -> None:
    values = np.random.default_rng(0).normal(size=12)
    doubled, groups = np.repeat(values, 2), [f"patient_{i // 2}" for i in range(24)]
    grouped = mean_interval(doubled, groups, samples=2000)
    assert grouped.mean == pytest.approx(values.mean())
    # the second eye of a patient brings nothing new
    alone, ignored = mean_interval(values, samples=2000), mean_interval(doubled, samples=2000)
    assert (grouped.low, grouped.high) == (alone.low, alone.high)
    assert ignored.high - ignored.low < 0.85 * (grouped.high - grouped.low)


def test_interval_of_nothing_to_resample() -> None:
    assert mean_interval(np.full(5, 0.25)) == (interval := mean_interval(np.full(9, 0.25)))
    assert (interval.mean, interval.low, interval.high) == (0.25, 0.25, 0.25)
    assert np.isnan(mean_interval(np.array([0.5])).low) and mean_interval(np.array([0.5])).mean == 0.5
    assert np.isnan(mean_interval(np.array([])).mean)


def test_pairs_are_tested_and_corrected() -> None:
    base = np.arange(7) / 10
    better = base + [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07]
    mixed = base + [0.01, -0.02, 0.03, -0.04, 0.05, -0.06, 0.07]
    table = paired_differences(pd.DataFrame({"a": base, "b": better, "c": mixed}), samples=500).set_index(
        ["first", "second"]
    )
    row = table.loc["a", "b"]
    assert row["difference"] == pytest.approx(-0.04) and row["n"] == 7
    assert row["p"] == pytest.approx(2 / 2**7)  # all seven differences have one sign
    assert table.loc[("a", "c"), "p"] == pytest.approx(stats.wilcoxon(base - mixed).pvalue)
    ordered = table.sort_values("p")
    factors = np.maximum.accumulate(ordered["p"].to_numpy() * [3, 2, 1])
    assert ordered["p_holm"].to_numpy() == pytest.approx(np.minimum(factors, 1))


def test_no_p_value_of_fewer_than_six_cases() -> None:
    frame = pd.DataFrame({"a": np.arange(5.0), "b": np.arange(5.0) + 1})
    (row,) = paired_differences(frame, samples=100).itertuples()
    assert np.isnan(row.p) and np.isnan(row.p_holm)
    assert row.note == "no test of 5 cases can be significant: that takes 6"
    twelve = pd.concat([frame] * 3, ignore_index=True)
    (row,) = paired_differences(twelve, [f"patient_{i % 5}" for i in range(15)], samples=100).itertuples()
    assert row.n == 5 and "5 groups" in row.note


def test_equal_experiments_do_not_differ() -> None:
    (row,) = paired_differences(pd.DataFrame({"a": np.arange(8.0), "b": np.arange(8.0)}), samples=100).itertuples()
    assert (row.difference, row.low, row.high, row.p) == (0, 0, 0, 1)


def test_probability_of_being_best() -> None:
    frame = pd.DataFrame({"a": [1.0, 1.0], "b": [0.0, 2.0], "c": [0.0, 0.0]})
    # of the four samples of two cases b has a mean of 0, 1 (twice) or 2: it wins once, loses once, and shares two
    best = probability_of_being_best(frame, samples=20_000)
    assert best.to_numpy() == pytest.approx([0.5, 0.5, 0.0], abs=0.02)


def test_spread_over_seeds_and_folds() -> None:
    frame = pd.DataFrame({"seed": [0, 0, 1, 1], "fold": ["0", "1"] * 2, "value": [0.1, 0.3, 0.2, 0.6]})
    seeds, folds = spread(frame)
    assert seeds == pytest.approx(0.2 / np.sqrt(2)) and folds == pytest.approx(0.3 / np.sqrt(2))
    assert np.isnan(spread(frame[frame["seed"] == 0])[0])


def test_ranks_and_their_critical_difference() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(scale=0.01, size=(20, 4))
    frame = pd.DataFrame(noise + [0.5, 0.9, 0.9, 0.1], columns=list("abcd"))
    ranks = critical_difference(frame)
    assert ranks.mean["d"] == 4 and ranks.mean["a"] == 3
    assert ranks.mean.sum() == pytest.approx(10)
    assert ranks.distance == pytest.approx(2.569 * np.sqrt(4 * 5 / (6 * 20)), rel=1e-3)  # table 5 of Demšar
    assert {frozenset(names) for names in ranks.equal} >= {frozenset("bc")}
    assert ranks.p.loc["b", "d"] < 0.05 < ranks.p.loc["b", "c"]
    assert ranks.friedman_p < 0.001


def test_pareto_front() -> None:
    quality, cost = np.array([0.9, 0.8, 0.7, 0.9]), np.array([5.0, 1.0, 2.0, 6.0])
    assert pareto_front(quality, cost).tolist() == [True, True, False, False]
