"""The tables of a report."""

import math

import pandas as pd

from nnunetv2.study.report.analysis import Analysis
from nnunetv2.study.report.costs import BUDGET, COSTS
from nnunetv2.study.report.data import Data
from nnunetv2.study.report.metrics import BY_KEY
from nnunetv2.study.report.tables import Cell, Table, interval, number, probability, significant

INTERVALS = "mean [95% interval]"


def main_table(analysis: Analysis, costs: pd.DataFrame) -> Table:
    """A row per experiment: Dice, difference to the baseline, probability of being best, costs."""
    name, baseline = analysis.classes[0], analysis.comparison.baseline
    means, costs = analysis.means(name), costs.reindex(analysis.experiments)
    several = len(analysis.experiments) > 1
    header = ["Experiment", f"Dice, {name}"]
    header += [f"Difference to {baseline}", "p (Holm)", "P(best)"] if several else []
    known = [column for column in COSTS if costs[column].notna().any()]
    header += [COSTS[column][0] for column in known]
    differences = analysis.to_baseline(name) if several else pd.DataFrame()
    best = analysis.best(name) if several else pd.Series(dtype=float)
    leading = means["mean"].idxmax()
    rows = []
    for experiment in analysis.experiments:
        row = means.loc[experiment]
        dice = interval(row["mean"], row["low"], row["high"])
        cells = [Cell(experiment), Cell(dice.text, dice.value, several and experiment == leading)]
        if several:
            cells += _compared(differences, experiment)
            cells.append(number(best[experiment], 2))
        rows.append([*cells, *(significant(costs.loc[experiment, column]) for column in known)])
    note = (
        f"Dice: {INTERVALS} over {int(means['n'].max())} cases; P(best): share of the bootstrap samples in which the "
        "experiment has the highest mean; GPU-hours: of all its runs; "
        "FLOPs: of one forward pass at the patch size."
    )
    return Table("main", "Quality and cost", note, header, rows)


def _compared(differences: pd.DataFrame, experiment: str) -> list[Cell]:
    if experiment not in differences.index:
        return [Cell("baseline", math.nan), Cell("–", math.nan)]
    row = differences.loc[experiment]
    return [interval(row["difference"], row["low"], row["high"]), probability(row["p_holm"])]


def class_table(analysis: Analysis, data: Data) -> Table:
    """A row per class and experiment, a column per metric."""
    labels = [_labelled(key, data) for key in analysis.metrics]
    rows = []
    for name in analysis.classes:
        means = {key: analysis.means(name, key) for key in analysis.metrics}
        for experiment in analysis.experiments:
            cells = [Cell(name), Cell(experiment)]
            for key in analysis.metrics:
                found = experiment in means[key].index
                row = means[key].loc[experiment] if found else None
                digits = 1 if key in ("hd95", "betti0_error") else 4 if key in ("brier", "ece") else 3
                leading = found and len(means[key]) > 1 and row["mean"] == _best(means[key]["mean"], key)
                cell = interval(row["mean"], row["low"], row["high"], digits) if found else number(math.nan)
                cells.append(Cell(cell.text, cell.value, leading))
            rows.append(cells)
    arrows = [
        f"{label} {'↑' if BY_KEY[key].higher_is_better else '↓'}"
        for label, key in zip(labels, analysis.metrics, strict=True)
    ]
    return Table("classes", "All metrics by class", INTERVALS + " over cases.", ["Class", "Experiment", *arrows], rows)


def _best(means: pd.Series, key: str) -> float:
    return means.max() if BY_KEY[key].higher_is_better else means.min()


def _labelled(key: str, data: Data) -> str:
    label = BY_KEY[key].label
    return f"{label} ({data.unit})" if key == "hd95" else label


def pairs_table(analysis: Analysis) -> Table:
    """A row per class and pair of experiments."""
    rows = []
    for name in analysis.classes:
        for row in analysis.differences_of(name).itertuples():
            cells = [Cell(name), Cell(f"{row.first} − {row.second}"), interval(row.difference, row.low, row.high)]
            rows.append([*cells, probability(row.p), probability(row.p_holm), Cell(str(row.n), row.n)])
    cases = "Cases" if analysis.comparison.groups is None else "Groups"
    header = ["Class", "Pair", "Difference of Dice", "p", "p (Holm)", cases]
    note = (
        "Mean paired difference [95% interval] over the cases that are defined in all experiments; Wilcoxon "
        "signed-rank test, Holm's correction over the pairs of a class."
    )
    return Table("pairs", "All pairs", note, header, rows)


def spread_table(analysis: Analysis) -> Table:
    """A row per class and experiment: how much the mean Dice differs between seeds, and between folds."""
    rows = [
        [Cell(name), Cell(experiment), number(seeds), number(folds)]
        for name, experiment, seeds, folds in analysis.spreads.itertuples(index=False)
    ]
    note = (
        "Standard deviation of the mean Dice over seeds (another training on the same cases) and over folds (other "
        "cases and another training)."
    )
    return Table(
        "spread", "Spread over seeds and folds", note, ["Class", "Experiment", "Over seeds", "Over folds"], rows
    )


def budget_table(runs: pd.DataFrame) -> Table:
    """A row per experiment: what its runs were allowed."""
    rows = []
    for experiment, found in runs.groupby("experiment", sort=False):
        cells = [Cell(str(experiment)), Cell(str(len(found)), len(found))]
        for key in BUDGET:
            values = list(dict.fromkeys(str(value) for value in found[key].dropna()))
            single = len(values) == 1 and values[0].replace(".", "").isdigit()
            text = f"{float(values[0]):,.0f}" if single else " / ".join(values) or "–"
            cells.append(Cell(text, float(values[0]) if single else None))
        rows.append(cells)
    header = ["Experiment", "Runs", *(name.capitalize() for name in BUDGET.values())]
    return Table("budgets", "Budgets", "What the runs were allowed.", header, rows)
