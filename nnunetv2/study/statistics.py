"""The statistics of a comparison: SciPy's, statsmodels' and scikit-posthocs', put together."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE, ALPHA = 0.95, 0.05
Groups = Sequence[str] | None


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% interval; NaN where there is nothing to resample."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Ranks:
    """Mean ranks over the cases, 1 is best.

    Attributes:
        mean: per experiment.
        p: of Nemenyi's test, experiment × experiment.
        distance: of mean ranks that differ significantly.
        friedman_p: of Friedman's test that all experiments are equal.
        equal: experiments that do not differ significantly, from best to worst; the largest such sets.
    """

    mean: pd.Series
    p: pd.DataFrame
    distance: float
    friedman_p: float
    equal: list[list[str]]


def mean_interval(values: np.ndarray, groups: Groups = None, *, samples: int = 10_000, seed: int = 0) -> Interval:
    """Return the mean of values with its bootstrap interval: BCa (Efron, JASA 1987), expanded for small samples.

    The bootstrap takes the spread of n values as if n − 1 were n, and the normal distribution for Student's: of 20
    cases its 95% cover some 92%. So it is asked for the level at which it agrees with Student's interval where the
    values are normal (Hesterberg, The American Statistician 2015, section 5.3).

    Args:
        values: one per case, without NaN.
        groups: of the cases; whole groups are resampled.
        samples: of the bootstrap.
        seed: of the bootstrap.
    """
    return _interval(values, groups, "BCa", samples, seed)


def _interval(values: np.ndarray, groups: Groups, method: str, samples: int, seed: int) -> Interval:
    values = np.asarray(values, dtype=float)
    if len(values) == 0:
        return Interval(np.nan, np.nan, np.nan)
    mean = float(values.mean())
    sums, counts = _by_group(values, groups)
    if len(sums) < 2:
        return Interval(mean, np.nan, np.nan)
    if np.ptp(sums / counts) == 0:
        return Interval(mean, mean, mean)
    found = _bootstrap(sums, counts, method, samples, seed)
    if not np.isfinite(found).all():  # BCa needs values that differ enough
        found = _bootstrap(sums, counts, "percentile", samples, seed)
    return Interval(mean, float(found[0]), float(found[1]))


def _expanded_level(number: int) -> float:
    quantile = np.sqrt(number / (number - 1)) * stats.t.ppf((1 + CONFIDENCE) / 2, number - 1)
    return float(1 - 2 * stats.norm.sf(quantile))


def _bootstrap(sums: np.ndarray, counts: np.ndarray, method: str, samples: int, seed: int) -> tuple[float, float]:
    def mean(sums: np.ndarray, counts: np.ndarray, axis: int) -> np.ndarray:
        return sums.sum(axis=axis) / counts.sum(axis=axis)

    # values that hardly differ give NaN, which the caller looks for
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        result = stats.bootstrap(
            (sums, counts),
            mean,
            paired=True,
            vectorized=True,
            n_resamples=samples,
            batch=1000,
            confidence_level=_expanded_level(len(sums)),
            method=method,
            random_state=np.random.default_rng(seed),  # newer names of it are unknown to SciPy before 1.15
        )
    return result.confidence_interval.low, result.confidence_interval.high


def _by_group(values: np.ndarray, groups: Groups) -> tuple[np.ndarray, np.ndarray]:
    if groups is None:
        return values, np.ones_like(values)
    table = pd.Series(values).groupby(np.asarray(groups), sort=False).agg(["sum", "count"])
    return table["sum"].to_numpy(float), table["count"].to_numpy(float)


def paired_differences(
    frame: pd.DataFrame, groups: Groups = None, *, samples: int = 10_000, seed: int = 0
) -> pd.DataFrame:
    """Compare all pairs of experiments.

    The intervals are expanded percentile intervals: differences between paired values are about symmetric, where the
    skewness that BCa estimates from few cases is mostly noise, and costs coverage (benchmarks/null_study.py).

    Args:
        frame: case × experiment, without NaN; a case of several seeds once, with their mean.
        groups: of the cases: whole groups are resampled, and the test is one of the groups' mean differences.
        samples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        A row per pair: first, second, difference (mean of first − second), low, high, p (two-sided Wilcoxon
        signed-rank test), p_holm (corrected for all pairs; Holm, 1979), n (cases or groups), note (why there is no p).
    """
    rows = []
    for first, second in combinations(frame.columns, 2):
        differences = (frame[first] - frame[second]).to_numpy(float)
        interval = _interval(differences, groups, "percentile", samples, seed)
        sums, counts = _by_group(differences, groups)
        p, note = _signed_rank(sums / counts, "cases" if groups is None else "groups")
        rows.append((first, second, interval.mean, interval.low, interval.high, p, len(sums), note))
    table = pd.DataFrame(rows, columns=["first", "second", "difference", "low", "high", "p", "n", "note"])
    table.insert(6, "p_holm", _holm(table["p"].to_numpy(float)))
    return table


def fewest_cases(pairs: int = 1) -> int:
    """Return with how many cases a test of one among so many pairs can be significant after Holm's correction.

    The smallest p of the two-sided signed-rank test of n cases is 2 / 2**n: all differences have the same sign.
    """
    return math.floor(math.log2(2 * pairs / ALPHA)) + 1


def _signed_rank(differences: np.ndarray, noun: str) -> tuple[float, str]:
    if len(differences) < fewest_cases():
        return np.nan, f"no test of {len(differences)} {noun} can be significant: that takes {fewest_cases()}"
    differences = differences[differences != 0]  # Wilcoxon drops zeros; SciPy's test is exact for a few without them
    return (float(stats.wilcoxon(differences).pvalue) if len(differences) else 1.0), ""


def _holm(p: np.ndarray) -> np.ndarray:
    if len(p) == 0 or np.isnan(p).any():
        return np.full_like(p, np.nan)
    from statsmodels.stats.multitest import multipletests  # takes a second to load

    return multipletests(p, method="holm")[1]


def probability_of_being_best(
    frame: pd.DataFrame, groups: Groups = None, *, samples: int = 10_000, seed: int = 0
) -> pd.Series:
    """Return per experiment the share of the bootstrap samples in which its mean is the highest; ties are shared.

    Args:
        frame: case × experiment, without NaN, higher is better.
        groups: of the cases; whole groups are resampled.
        samples: of the bootstrap.
        seed: of the bootstrap.
    """
    if frame.empty:
        return pd.Series(np.nan, index=frame.columns)
    columns = [_by_group(frame[name].to_numpy(float), groups) for name in frame]
    sums, counts = np.stack([sums for sums, _ in columns], axis=1), columns[0][1]
    rng, number = np.random.default_rng(seed), len(counts)
    drawn = rng.multinomial(number, np.full(number, 1 / number), size=samples)
    means = (drawn @ sums) / (drawn @ counts)[:, None]
    best = np.isclose(means, means.max(axis=1, keepdims=True), rtol=0, atol=1e-12)
    return pd.Series((best / best.sum(axis=1, keepdims=True)).mean(axis=0), index=frame.columns)


def spread(frame: pd.DataFrame) -> tuple[float, float]:
    """Return the standard deviations of the means of the seeds and of the means of the folds; NaN of a single one.

    The seeds are compared over the folds that all of them have: otherwise they would differ by the folds.

    Args:
        frame: an experiment's values, columns seed, fold, value.
    """
    runs = frame.groupby(["fold", "seed"], dropna=False)["value"].mean().unstack()
    return float(runs.dropna().mean().std(ddof=1)), float(runs.mean(axis=1).std(ddof=1))


def critical_difference(frame: pd.DataFrame, groups: Groups = None) -> Ranks:
    """Rank the experiments in every case, and tell which mean ranks differ (Demšar, JMLR 2006).

    Args:
        frame: case × experiment (three or more), without NaN, higher is better.
        groups: of the cases; their means are ranked, since cases of one group are not independent.
    """
    from scikit_posthocs import posthoc_nemenyi_friedman  # takes seconds to load

    if groups is not None:
        frame = frame.groupby(np.asarray(groups), sort=False).mean()
    mean = frame.rank(axis=1, ascending=False).mean()
    p = posthoc_nemenyi_friedman(frame.to_numpy())
    p.index = p.columns = frame.columns
    number, cases = len(frame.columns), len(frame)
    quantile = stats.studentized_range.ppf(1 - ALPHA, number, np.inf) / np.sqrt(2)
    distance = float(quantile * np.sqrt(number * (number + 1) / (6 * cases)))
    all_tied = bool((frame.nunique(axis=1) == 1).all())  # Friedman's statistic is 0 / 0
    friedman = 1.0 if all_tied else float(stats.friedmanchisquare(*frame.to_numpy().T).pvalue)
    return Ranks(mean, p, distance, friedman, _equal_sets(mean.sort_values(), p))


def _equal_sets(ordered: pd.Series, p: pd.DataFrame) -> list[list[str]]:
    names, found = list(ordered.index), []
    for start in range(len(names)):
        end = max(i for i in range(start, len(names)) if p.loc[names[start], names[i]] >= ALPHA or i == start)
        if end > start and not any(set(names[start : end + 1]) <= set(other) for other in found):
            found.append(names[start : end + 1])
    return found


def pareto_front(quality: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Return which points no other one beats: none is as good and as cheap, and better or cheaper.

    Args:
        quality: (N,), higher is better.
        cost: (N,), lower is better.
    """
    as_good = (quality[None] >= quality[:, None]) & (cost[None] <= cost[:, None])
    better = (quality[None] > quality[:, None]) | (cost[None] < cost[:, None])
    return ~(as_good & better).any(axis=1)
