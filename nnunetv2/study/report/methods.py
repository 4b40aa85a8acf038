"""The paragraph on the methods, and what a reader must know before the numbers."""

from importlib.metadata import version

import pandas as pd

from nnunetv2.study.report.analysis import MAIN_METRIC, Analysis
from nnunetv2.study.report.costs import budget_text, unequal_budgets
from nnunetv2.study.report.data import Data
from nnunetv2.study.report.metrics import BY_KEY
from nnunetv2.study.statistics import fewest_cases


def methods(analysis: Analysis, data: Data, runs: pd.DataFrame) -> str:
    """Return a paragraph that can be pasted into a paper.

    Args:
        analysis: of the comparison.
        data: of the comparison.
        runs: of the largest number of training cases, with their budgets.
    """
    tolerance = f" (NSD at a tolerance of {data.nsd_tolerance:g} {data.unit})" if "nsd" in analysis.metrics else ""
    sentences = [
        _compared(analysis),
        _training_cases(analysis, runs),
        _budget(runs),
        f"Per case and class we computed {', '.join(BY_KEY[key].label for key in analysis.metrics)}{tolerance}.",
        "Cases whose truth and prediction are both empty count for nothing, as in nnU-Net.",
        _statistics(analysis),
        f"Software: {_versions(runs)}.",
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _compared(analysis: Analysis) -> str:
    comparison = analysis.comparison
    folds = sorted({member.fold for member in comparison.members})
    seeds = {member.seed for member in comparison.members}
    averaged = f" and {len(seeds)} seeds each, over which the metrics of a case were averaged"
    return (
        f"{_counted(len(analysis.experiments), 'model')} ({', '.join(analysis.experiments)}) "
        f"{'were compared' if len(analysis.experiments) > 1 else 'was evaluated'} on {comparison.dataset} "
        f"(configuration {comparison.configuration}) with {len(analysis.values(analysis.classes[0]))} cases from "
        f"{_counted(len(folds), 'validation fold')} of nnU-Net ({', '.join(folds)})"
        f"{averaged if len(seeds) > 1 else ''}."
    )


def _training_cases(analysis: Analysis, runs: pd.DataFrame) -> str:
    known = sorted({int(number) for number in runs["training_cases"].dropna()})
    if not known:
        return ""
    largest = str(known[0]) if len(known) == 1 else f"{known[0]} to {known[-1]}"
    if len(analysis.sizes) == 1:
        return f"They were trained on {largest} cases per fold."
    smaller = ", ".join(str(size) for size in analysis.sizes[:-1])
    return (
        f"Every model was trained on {smaller} and {largest} cases per fold, the smaller sets being part of the larger "
        f"ones; unless stated otherwise, numbers are those of the models with {largest}."
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _budget(runs: pd.DataFrame) -> str:
    texts = {"steps": "{} steps", "batch_size": "a batch size of {}", "patch_size": "patches of {} pixels"}
    equal = {key: budget_text(runs[key]) for key in texts if runs[key].notna().all() and runs[key].nunique() == 1}
    parts = [texts[key].format(value) for key, value in equal.items()]
    return f"All models were trained with {', '.join(parts)}." if parts else ""


def _statistics(analysis: Analysis) -> str:
    groups = analysis.groups(analysis.values(analysis.classes[0]).index)
    over = "cases" if groups is None else f"the {len(set(groups))} groups of cases"
    sentences = [
        f"Means are given with 95% confidence intervals by a bootstrap over {over} (10,000 samples; bias-corrected and "
        "accelerated (BCa), expanded for small samples); they tell how the trained models do on other cases, not "
        "how the numbers vary when the models are trained again."
    ]
    if len(analysis.experiments) > 1:
        sentences.append(
            "Pairs of models were compared on the cases whose metric is defined in all models, by the mean paired "
            f"difference with its expanded percentile interval{_tests(analysis, groups)}."
        )
        sentences.append(
            "The probability of being the best model is the share of the bootstrap samples in which its mean is the "
            "highest."
        )
    if analysis.ranks(analysis.classes[0]) is not None:
        sentences.append(
            f"The models' mean ranks by Dice over {over} were compared by Friedman's test and, pair by pair, by "
            "Nemenyi's test at a level of 0.05 (critical-difference diagram)."
        )
    return " ".join(sentences)


def _tests(analysis: Analysis, groups: list[str] | None) -> str:
    if analysis.differences["p"].isna().all():  # too few cases: none was made
        return ""
    of_groups = "" if groups is None else " of the groups' means"
    return (
        f" and by the two-sided Wilcoxon signed-rank test{of_groups}, corrected by Holm's method for all pairs of a "
        "class and metric"
    )


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
    sentences += _undefined(analysis)
    sentences += _of_other_cases(analysis)
    if len(analysis.experiments) > 1:
        sentences += too_few_cases(analysis)
    if any(member.fold == "all" for member in analysis.comparison.members):
        sentences.append(
            "The fold `all` validates on the cases that it trains on: its numbers say nothing of new cases."
        )
    return sentences


def _undefined(analysis: Analysis) -> list[str]:
    empty = [name for name in analysis.classes if not analysis.has(name, MAIN_METRIC)]
    if not empty:
        return []
    return [
        f"Truth and predictions of {', '.join(empty)} are empty in all cases, so the metrics are undefined (NaN), as "
        "in nnU-Net."
    ]


def _of_other_cases(analysis: Analysis) -> list[str]:
    """Return a sentence if the means of the experiments are over different cases."""
    numbers = {name: analysis.means(name)["n"] for name in analysis.classes}
    ranges = [f"{name} {int(n.min())} to {int(n.max())}" for name, n in numbers.items() if n.min() < n.max()]
    if not ranges:
        return []
    return [
        f"The means of the experiments are over different numbers of cases ({', '.join(ranges)}): where the truth is "
        "empty, a case counts only for the experiments that predict something there, as in nnU-Net. Differences, tests "
        "and P(best) are over the cases that count for all."
    ]


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
