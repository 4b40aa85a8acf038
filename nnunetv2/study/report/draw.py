"""Which figures a report has, and what each of them shows."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nnunetv2.study.report.analysis import MAIN_METRIC, Analysis
from nnunetv2.study.report.costs import COSTS
from nnunetv2.study.report.data import Data
from nnunetv2.study.report.figures.box_plots import box_plots
from nnunetv2.study.report.figures.case_pictures import case_figure
from nnunetv2.study.report.figures.cost import cost_figure
from nnunetv2.study.report.figures.curves import data_size_figure, learning_figure
from nnunetv2.study.report.figures.differences import differences_figure
from nnunetv2.study.report.figures.ranks import rank_diagram
from nnunetv2.study.report.figures.reliability import reliability_figure
from nnunetv2.study.report.learning_curves import learning_curve
from nnunetv2.study.report.metrics import BY_KEY
from nnunetv2.study.report.pictures import image_files, pictures_of_class
from nnunetv2.study.statistics import pareto_front

BOXED = ("dice", "cldice", "nsd", "hd95")


@dataclass(frozen=True, eq=False)
class Drawn:
    """A figure.

    Attributes:
        name: of its files.
        title: heading on the page.
        caption: what it shows, in a sentence or two.
        figure: itself.
    """

    name: str
    title: str
    caption: str
    figure: Figure


def draw_all(analysis: Analysis, data: Data, costs: pd.DataFrame) -> Iterator[Drawn]:
    """Yield the figures in the order of the page."""
    yield from _boxes(analysis, data)
    if len(analysis.experiments) > 1:
        yield from _differences(analysis)
        yield from _ranks(analysis)
    yield from _costs(analysis, costs)
    yield from _sizes(analysis)
    yield from _curves(analysis)
    yield from _reliability(analysis)
    yield from _cases(analysis, data)


def _boxes(analysis: Analysis, data: Data) -> Iterator[Drawn]:
    for metric in (BY_KEY[key] for key in BOXED):
        values = {
            name: analysis.values(name, metric.key) for name in analysis.classes if analysis.has(name, metric.key)
        }
        unit = data.unit if metric.key == "hd95" else ""
        caption = (
            "Each grey line is a case. Boxes span the quartiles with the median in them, whiskers reach to the last "
            "case within 1.5 box lengths, diamonds are means."
        )
        if values:
            yield Drawn(f"boxes_{metric.key}", f"{metric.label} of the cases", caption, box_plots(values, metric, unit))


def _differences(analysis: Analysis) -> Iterator[Drawn]:
    baseline, label = analysis.comparison.baseline, BY_KEY[MAIN_METRIC].label
    tables = [
        analysis.to_baseline(name).rename_axis("experiment").reset_index().assign(**{"class": name})
        for name in analysis.classes
        if analysis.has(name, MAIN_METRIC)
    ]
    caption = (
        f"Mean paired difference to {baseline} with its 95% bootstrap interval; * marks p < 0.05 (Wilcoxon signed-rank "
        "test, Holm's correction over all pairs of the class)."
    )
    if tables:
        figure = differences_figure(pd.concat(tables), analysis.experiments, baseline, label)
        yield Drawn("differences", f"Differences to {baseline}", caption, figure)


def _ranks(analysis: Analysis) -> Iterator[Drawn]:
    name = analysis.classes[0]
    ranks = analysis.ranks(name)
    if ranks is not None:
        caption = (
            "Mean ranks by Dice over the cases; a bar joins experiments that do not differ significantly (Nemenyi's "
            f"test at 0.05; Friedman's test that all are equal: p = {ranks.friedman_p:.2g})."
        )
        figure = rank_diagram(ranks.mean, ranks.equal, ranks.distance, f"Dice, {name}")
        yield Drawn("ranks", "Critical-difference diagram", caption, figure)


def _costs(analysis: Analysis, costs: pd.DataFrame) -> Iterator[Drawn]:
    quality = analysis.means(analysis.classes[0])
    costs = costs.reindex(quality.index)
    known = {column: label for column, (label, _) in COSTS.items() if costs[column].notna().all()}
    known.pop("seconds_per_step", None)
    if not known or len(quality) < 2 or quality["mean"].isna().any():
        return
    fronts = {column: list(pareto_front(quality["mean"].to_numpy(), costs[column].to_numpy())) for column in known}
    caption = (
        "Mean Dice with its 95% interval over what it costs; the dashed line joins the Pareto front: the experiments "
        "that no other one beats in both."
    )
    label = f"Dice ({analysis.classes[0]})"
    yield Drawn("cost", "Quality against cost", caption, cost_figure(quality, costs, known, fronts, label))


def _sizes(analysis: Analysis) -> Iterator[Drawn]:
    known = [name for name in analysis.classes if analysis.has(name, MAIN_METRIC)]
    if len(analysis.sizes) < 2 or not known:
        return
    summary = analysis.summary
    summary = summary[(summary["metric"] == MAIN_METRIC) & summary["class"].isin(known)].copy()
    summary["cases"] = summary["num_training_cases"].fillna(analysis.full_size).astype(int)
    sizes = sorted(set(summary["cases"]))
    caption = "Mean Dice of the validation cases with its 95% interval over the number of training cases of a fold."
    figure = data_size_figure(summary, analysis.experiments, sizes, BY_KEY[MAIN_METRIC].label)
    yield Drawn("data_size", "Quality over the number of training cases", caption, figure)


def _curves(analysis: Analysis) -> Iterator[Drawn]:
    curves: dict[str, list[tuple[str, pd.DataFrame]]] = {}
    for size in analysis.sizes:
        words = "all training cases" if size is None else f"{size} training cases"
        members = [member for member in analysis.comparison.members if member.num_training_cases == size]
        found = [(member.experiment, learning_curve(member.folder)) for member in members]
        if any(len(curve) for _, curve in found):
            curves[words if len(analysis.sizes) > 1 else ""] = found
    if curves:
        caption = (
            "A thin line per run, a thick one for the mean of an experiment's runs. The pseudo Dice is that of "
            "patches; losses of different experiments are not comparable."
        )
        yield Drawn("learning_curves", "Learning curves", caption, learning_figure(curves, analysis.experiments))


def _reliability(analysis: Analysis) -> Iterator[Drawn]:
    bins: dict[str, dict[str, np.ndarray]] = {}
    for (experiment, size, name), values in analysis.table.bins.items():
        if size == analysis.sizes[-1]:
            bins.setdefault(name, {})[experiment] = values
    if bins:
        caption = (
            "How often a pixel is of the class, over the probability that was predicted for it; all pixels of all "
            "cases. On the dashed line probabilities are right."
        )
        yield Drawn("reliability", "Reliability", caption, reliability_figure(bins, analysis.experiments))


def _cases(analysis: Analysis, data: Data) -> Iterator[Drawn]:
    images = image_files(analysis.comparison.dataset)
    for number, one in enumerate(data.classes):
        pictures = pictures_of_class(analysis.largest, data, one, analysis.values(one.name), images)
        if pictures:
            caption = f"Worst, median and best case by the mean Dice of all experiments for {one.name}."
            yield Drawn(f"cases_{number + 1}", f"Cases: {one.name}", caption, case_figure(pictures))
