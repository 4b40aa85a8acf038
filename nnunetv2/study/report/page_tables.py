"""The tables of a report."""

import math

import pandas as pd

from nnunetv2.study.report.analysis import Analysis
from nnunetv2.study.report.costs import BUDGET, COSTS, budget_text
from nnunetv2.study.report.data import Data
from nnunetv2.study.report.metrics import BY_KEY
from nnunetv2.study.report.tables import Cell, Table, interval, number, probability, significant

INTERVALS = "mean [95% interval]"


def main_table(analysis: Analysis, costs: pd.DataFrame) -> Table:
    """A row per experiment: Dice, difference to the baseline, probability of being best, costs."""
    name, baseline = analysis.classes[0], analysis.comparison.baseline
    means, costs = analysis.means(name), costs.reindex(analysis.experiments)
    several = len(analysis.experiments) > 1
    known = [column for column in COSTS if costs[column].notna().any()]
    differences = analysis.to_baseline(name) if several else pd.DataFrame()
    best = analysis.best(name) if several else pd.Series(dtype=float)
    rows = []
    for experiment, row in means.iterrows():
        dice = interval(row["mean"], row["low"], row["high"])
        cells = [Cell(experiment), Cell(dice.text, dice.value, several and row["mean"] == means["mean"].max())]
        if several:
            cells += [*_compared(differences, experiment), number(best[experiment], 2)]
        rows.append([*cells, *(significant(costs.loc[experiment, column]) for column in known)])
    header = ["Experiment", f"Dice, {name}"]
    header += [f"Difference to {baseline}", "p (Holm)", "P(best)"] if several else []
    header += [COSTS[column][0] for column in known]
    return Table("main", "Quality and cost", _main_note(analysis, known), header, rows)


def _main_note(analysis: Analysis, known: list[str]) -> str:
    numbers = analysis.means(analysis.classes[0])["n"]
    fewest, most = int(numbers.min()), int(numbers.max())
    parts = [f"Dice: {INTERVALS} over {most if fewest == most else f'{fewest} to {most}'} cases"]
    if len(analysis.experiments) > 1:
        parts.append("P(best): share of the bootstrap samples in which the experiment has the highest mean")
    if known and len(analysis.sizes) > 1:
        largest = analysis.sizes[-1]
        parts.append(f"all columns: of the runs with {'all' if largest is None else largest} training cases")
    if "gpu_hours" in known:
        parts.append("GPU-hours: training and validation of an experiment's runs together, times the number of GPUs")
    if "hours" in known:
        parts.append("hours: training and validation of an experiment's runs together, by the clock")
    if "peak_main_memory_gib" in known:
        parts.append("main memory: of the training process on the CPU or MPS")
    if "gflops" in known:
        parts.append("FLOPs: of one forward pass at the patch size")
    return "; ".join(parts) + "."


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
                row = means[key].loc[experiment]
                digits = 1 if key in ("hd95", "betti0_error") else 4 if key in ("brier", "ece") else 3
                leading = len(means[key]) > 1 and row["mean"] == _best(means[key]["mean"], key)
                cell = interval(row["mean"], row["low"], row["high"], digits)
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
            known = found[key].dropna().unique()
            single = len(known) == 1 and not isinstance(known[0], str)
            cells.append(Cell(budget_text(found[key]) or "–", float(known[0]) if single else None))
        rows.append(cells)
    header = ["Experiment", "Runs", *(name.capitalize() for name in BUDGET.values())]
    return Table("budgets", "Budgets", "What the runs of an experiment were allowed.", header, rows)
