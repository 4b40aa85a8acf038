"""What a report says of studies with too few cases, or groups, for any test to be significant."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nnunetv2.study.members import Comparison, Member
from nnunetv2.study.report.analysis import Analysis
from nnunetv2.study.report.case_table import CaseTable
from nnunetv2.study.report.data import Data
from nnunetv2.study.report.methods import methods, warnings

EXPERIMENTS = ("a", "b", "c")


def analysis_of(cases: int, patients: int | None = None) -> Analysis:
    rng = np.random.default_rng(0)
    rows = [
        (experiment, "0", None, None, f"case_{case}", "vessel", rng.random())
        for experiment in EXPERIMENTS
        for case in range(cases)
    ]
    columns = ["experiment", "fold", "seed", "num_training_cases", "case", "class", "dice"]
    members = [Member(experiment, "0", None, None, Path("nowhere")) for experiment in EXPERIMENTS]
    groups = None if patients is None else {f"case_{i}": f"patient_{i % patients}" for i in range(cases)}
    comparison = Comparison("a_name", "Dataset950_Simulated", "2d", members, "a", groups, [], 1.0, [])
    return Analysis(comparison, CaseTable(pd.DataFrame(rows, columns=columns), {}))


@pytest.fixture
def equal_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnunetv2.study.report.methods.unequal_budgets", lambda runs: [])


@pytest.mark.usefixtures("equal_budgets")
@pytest.mark.parametrize(
    ("cases", "patients", "expected"),
    [
        (5, None, ["With 5 cases no test can be significant (that takes 6), so no p-value is given."]),
        (20, 4, ["With 4 groups no test can be significant (that takes 6), so no p-value is given."]),
        (
            6,
            None,
            ["With 6 cases and 3 pairs of models no test can be significant after Holm's correction"],
        ),
        (7, None, []),
    ],
)
def test_too_few_cases_are_named(cases: int, patients: int | None, expected: list[str]) -> None:
    found = warnings(analysis_of(cases, patients), pd.DataFrame())
    assert len(found) == len(expected) and all(one.startswith(text) for one, text in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("cases", "patients", "is_tested"), [(5, None, False), (20, 4, False), (6, None, True), (20, 6, True)]
)
def test_methods_name_the_test_only_where_there_is_a_p_value(cases: int, patients: int | None, is_tested: bool) -> None:
    data = Data([], None, ".png", "NaturalImage2DIO", Path("nowhere"), 1.0)
    columns = {"training_cases": [4], "steps": [6], "batch_size": [2], "patch_size": ["64 × 64"], "versions": [{}]}
    text = methods(analysis_of(cases, patients), data, pd.DataFrame(columns))
    assert "by the mean paired difference with its expanded percentile interval" in text
    assert ("Wilcoxon" in text) == ("Holm" in text) == is_tested


def test_groups_are_ranked_not_their_cases() -> None:
    assert analysis_of(20, 2).ranks("vessel") is None
    of_cases, of_groups = analysis_of(20).ranks("vessel"), analysis_of(20, 5).ranks("vessel")
    assert of_cases is not None and of_groups is not None
    assert of_groups.distance == pytest.approx(2 * of_cases.distance)
