"""The paragraph on the methods, and what a reader must know before the numbers."""

from importlib.metadata import version

import pandas as pd

from nnunetv2.study.report.analysis import Analysis
from nnunetv2.study.report.costs import unequal_budgets
from nnunetv2.study.report.data import Data
from nnunetv2.study.report.metrics import BY_KEY
from nnunetv2.study.statistics import fewest_cases


def methods(analysis: Analysis, data: Data, runs: pd.DataFrame) -> str:
    """Return a paragraph that can be pasted into a paper."""
    comparison = analysis.comparison
    members = comparison.members
    folds = sorted({member.fold for member in members})
    seeds = sorted({member.seed for member in members if member.seed is not None})
    metrics = ", ".join(BY_KEY[key].label for key in analysis.metrics)
    sentences = [
        f"{len(analysis.experiments)} models ({', '.join(analysis.experiments)}) were compared on {comparison.dataset} "
        f"(configuration {comparison.configuration}) with {analysis.values(analysis.classes[0]).shape[0]} cases from "
        f"{_counted(len(folds), 'validation fold')} of nnU-Net ({', '.join(folds)})"
        + (
            f" and {_counted(len(seeds), 'seed')} each, over which the metrics of a case were averaged."
            if len(seeds) > 1
            else "."
        ),
        _budget(runs),
        f"Per case and class we computed {metrics}"
        + (f" (NSD at a tolerance of {data.nsd_tolerance:g} {data.unit})." if "nsd" in analysis.metrics else "."),
        "Cases whose truth and prediction are both empty count for nothing, as in nnU-Net.",
        _statistics(analysis),
        f"Software: {_versions(runs)}.",
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _budget(runs: pd.DataFrame) -> str:
    parts = []
    for key, text in (
        ("steps", "{} steps"),
        ("batch_size", "a batch size of {}"),
        ("patch_size", "patches of {} pixels"),
    ):
        values = {str(value) for value in runs[key].dropna()}
        if len(values) == 1 and runs[key].notna().all():
            value = values.pop()
            parts.append(text.format(f"{float(value):.0f}" if key != "patch_size" else value))
    return f"All models were trained with {', '.join(parts)}." if parts else ""


def _statistics(analysis: Analysis) -> str:
    groups = analysis.groups(analysis.values(analysis.classes[0]).index)
    over = "cases" if groups is None else f"the {len(set(groups))} groups of cases"
    text = (
        f"Means are given with 95% confidence intervals by a bootstrap over {over} (10,000 samples; bias-corrected and "
        "accelerated (BCa), expanded for small samples); they tell how the trained models do on other cases, not "
        "how the numbers vary when the models are trained again."
    )
    if len(analysis.experiments) > 1:
        text += (
            " Pairs of models were compared on the cases whose metric is defined in all models, by the mean paired "
            "difference with its expanded percentile interval and by the two-sided Wilcoxon signed-rank test"
            f"{_of_groups(groups)}, corrected by Holm's method for all pairs of a class and metric."
        )
    return text


def _of_groups(groups: list[str] | None) -> str:
    return "" if groups is None else " of the groups' means"


def _versions(runs: pd.DataFrame) -> str:
    names = ("nnunetv2", "nnunet-vit", "torch", "timm")
    recorded: dict[str, set[str]] = {name: set() for name in names}
    for versions in runs["versions"]:
        for name in names:
            if versions.get(name):
                recorded[name].add(str(versions[name]))
    trained = [f"{name} {' / '.join(sorted(found))}" for name, found in recorded.items() if found]
    return ", ".join([*trained, f"SciPy {version('scipy')}", f"scikit-image {version('scikit-image')}"])


def warnings(analysis: Analysis, runs: pd.DataFrame) -> list[str]:
    """Return what a reader must know before the numbers: in a sentence each."""
    sentences = unequal_budgets(runs)
    if sentences:
        sentences = [f"The budgets are not equal, so neither is the comparison. {sentences[0]}", *sentences[1:]]
    if len(analysis.experiments) > 1:
        sentences += too_few_cases(analysis)
    if any(member.fold == "all" for member in analysis.comparison.members):
        sentences.append(
            "The fold `all` validates on the cases that it trains on: its numbers say nothing of new cases."
        )
    return sentences


def too_few_cases(analysis: Analysis) -> list[str]:
    """Return a sentence if there are too few cases, or groups, for a significant test; otherwise nothing."""
    pairs = analysis.differences_of(analysis.classes[0])
    if pairs.empty:
        return []
    number, fewest, corrected = int(pairs["n"].iloc[0]), fewest_cases(), fewest_cases(len(pairs))
    noun = "case" if analysis.comparison.groups is None else "group"
    if number < fewest:
        return [
            f"With {_counted(number, noun)} no test can be significant (that takes {fewest}), so no p-value is given."
        ]
    if number < corrected:
        return [
            f"With {_counted(number, noun)} and {len(pairs)} pairs of models no test can be significant after Holm's "
            f"correction (that takes {corrected})."
        ]
    return []
