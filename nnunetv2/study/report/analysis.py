"""What the statistics say of the metrics: tables of means, differences, ranks and spread."""

from dataclasses import dataclass, replace
from functools import cached_property

import pandas as pd

from nnunetv2.study.members import Comparison
from nnunetv2.study.report.case_table import CaseTable
from nnunetv2.study.report.costs import training_cases
from nnunetv2.study.report.metrics import BY_KEY, MEAN_OF_CLASSES, METRICS
from nnunetv2.study.statistics import (
    Ranks,
    critical_difference,
    mean_interval,
    paired_differences,
    probability_of_being_best,
    spread,
)

MAIN_METRIC = "dice"


@dataclass(frozen=True, eq=False)
class Analysis:
    """The metrics of a comparison and what follows from them.

    Attributes:
        comparison: whose members are finished.
        table: the metrics of all its predictions.
    """

    comparison: Comparison
    table: CaseTable

    @cached_property
    def experiments(self) -> list[str]:
        """In the order of the comparison."""
        return list(dict.fromkeys(member.experiment for member in self.comparison.members))

    @cached_property
    def sizes(self) -> list[int | None]:
        """Numbers of training cases in ascending order; None, which is all, comes last."""
        found = {member.num_training_cases for member in self.comparison.members}
        return [*sorted(size for size in found if size is not None), *([None] if None in found else [])]

    @cached_property
    def largest(self) -> Comparison:
        """The members of the largest number of training cases."""
        size = self.sizes[-1]
        members = [member for member in self.comparison.members if member.num_training_cases == size]
        return replace(self.comparison, members=members)

    @cached_property
    def full_size(self) -> int:
        """Number of training cases of a fold where no subset was asked for, the mean over the folds."""
        found = [training_cases(member, self.comparison.dataset) for member in self.largest.members]
        known = [number for number in found if number is not None]
        return round(sum(known) / len(known)) if known else len(self.values(self.classes[0]))

    @cached_property
    def rows(self) -> pd.DataFrame:
        """`table.rows` with a row for the mean of the classes, where there are several."""
        rows = self.table.rows
        if rows["class"].nunique() == 1:
            return rows
        keys = list(rows.columns[: rows.columns.get_loc("class")])
        mean = rows.drop(columns="class").groupby(keys, sort=False, dropna=False).mean().reset_index()
        return pd.concat([mean.assign(**{"class": MEAN_OF_CLASSES}), rows], ignore_index=True)

    @cached_property
    def classes(self) -> list[str]:
        """The mean of the classes first."""
        return list(dict.fromkeys(self.rows["class"]))

    @cached_property
    def metrics(self) -> list[str]:
        """Keys of the metrics that were measured; Dice is one of them even where no case has a value."""
        return [metric.key for metric in METRICS if any(self.is_told(name, metric.key) for name in self.classes)]

    def has(self, name: str, metric: str) -> bool:
        """Whether any case has a value of a metric for a class."""
        return metric in self.rows and bool(self.rows.loc[self.rows["class"] == name, metric].notna().any())

    def is_told(self, name: str, metric: str) -> bool:
        """Whether tables have a metric of a class: Dice always, as NaN where no case has a value, as in nnU-Net."""
        return metric == MAIN_METRIC or self.has(name, metric)

    def of_size(self, size: int | None) -> pd.DataFrame:
        """The rows of a number of training cases."""
        column = self.rows["num_training_cases"]
        return self.rows[column.isna() if size is None else column == size]

    def values(self, name: str, metric: str = MAIN_METRIC, size: int | None = -1) -> pd.DataFrame:
        """Return case × experiment: the mean over the seeds.

        Args:
            name: of the class.
            metric: its key.
            size: number of training cases; -1: the largest one.
        """
        rows = self.of_size(self.sizes[-1] if size == -1 else size)
        rows = rows[rows["class"] == name]
        return rows.groupby(["case", "experiment"])[metric].mean().unstack().reindex(columns=self.experiments)

    def groups(self, cases: pd.Index) -> list[str] | None:
        """The groups of cases, where there are groups."""
        groups = self.comparison.groups
        return None if groups is None else [groups[case] for case in cases]

    @cached_property
    def summary(self) -> pd.DataFrame:
        """Per experiment, number of training cases, class and metric: mean with its interval, number of cases."""
        rows = []
        for size in self.sizes:
            for name in self.classes:
                for metric in filter(lambda key, name=name: self.is_told(name, key), self.metrics):
                    for experiment, values in self.values(name, metric, size).items():
                        defined = values.dropna()
                        interval = mean_interval(defined.to_numpy(), self.groups(defined.index))
                        numbers = (interval.mean, interval.low, interval.high, len(defined))
                        rows.append((experiment, size, name, metric, *numbers))
        columns = ["experiment", "num_training_cases", "class", "metric", "mean", "low", "high", "n"]
        return pd.DataFrame(rows, columns=columns).astype({"num_training_cases": "Int64"})

    def means(self, name: str, metric: str = MAIN_METRIC) -> pd.DataFrame:
        """Return mean, low, high, n per experiment at the largest number of training cases; NaN where undefined."""
        size = self.sizes[-1]
        chosen = self.summary[(self.summary["class"] == name) & (self.summary["metric"] == metric)]
        column = chosen["num_training_cases"]
        chosen = chosen[column.isna() if size is None else column == size]
        return chosen.set_index("experiment")[["mean", "low", "high", "n"]].reindex(self.experiments)

    @cached_property
    def differences(self) -> pd.DataFrame:
        """All pairs of experiments, for every class and metric: over the cases that are defined for all of them."""
        tables = []
        for name in self.classes:
            for metric in filter(lambda key, name=name: self.is_told(name, key), self.metrics):
                values = self.values(name, metric).dropna()
                pairs = paired_differences(values, self.groups(values.index))
                tables.append(pairs.assign(**{"class": name, "metric": metric}))
        return pd.concat(tables, ignore_index=True)

    def differences_of(self, name: str, metric: str = MAIN_METRIC) -> pd.DataFrame:
        """Return the pairs of a class and a metric."""
        table = self.differences
        return table[(table["class"] == name) & (table["metric"] == metric)]

    def to_baseline(self, name: str, metric: str = MAIN_METRIC) -> pd.DataFrame:
        """Return per experiment besides the baseline: difference (experiment − baseline), low, high, p_holm, n."""
        baseline = self.comparison.baseline
        rows = {}
        for row in self.differences_of(name, metric).itertuples():
            if baseline == row.second:
                rows[row.first] = (row.difference, row.low, row.high, row.p_holm, row.n)
            elif baseline == row.first:
                rows[row.second] = (-row.difference, -row.high, -row.low, row.p_holm, row.n)
        columns = ["difference", "low", "high", "p_holm", "n"]
        frame = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
        return frame.reindex([experiment for experiment in self.experiments if experiment != baseline])

    def ranks(self, name: str) -> Ranks | None:
        """Return the mean ranks by Dice over the cases or groups; None for fewer than three experiments or of these."""
        values = self.values(name).dropna()
        groups = self.groups(values.index)
        number = len(values) if groups is None else len(set(groups))
        return critical_difference(values, groups) if min(number, values.shape[1]) > 2 else None

    @cached_property
    def spreads(self) -> pd.DataFrame:
        """Per experiment and class the standard deviation of the mean Dice over the seeds and over the folds."""
        rows = []
        for name in self.classes:
            of_class = self.of_size(self.sizes[-1])
            of_class = of_class[of_class["class"] == name].rename(columns={MAIN_METRIC: "value"})
            for experiment in self.experiments:
                rows.append((name, experiment, *spread(of_class[of_class["experiment"] == experiment])))
        return pd.DataFrame(rows, columns=["class", "experiment", "seeds", "folds"])

    def best(self, name: str, metric: str = MAIN_METRIC) -> pd.Series:
        """Return the probability of being the best experiment."""
        values = self.values(name, metric).dropna()
        sign = 1 if BY_KEY[metric].higher_is_better else -1
        return probability_of_being_best(sign * values, self.groups(values.index))
