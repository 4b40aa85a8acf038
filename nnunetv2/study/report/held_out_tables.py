"""What a report says of test cases."""

from dataclasses import replace

import pandas as pd

from nnunetv2.study.members import Comparison
from nnunetv2.study.report.analysis import Analysis
from nnunetv2.study.report.case_table import measure_all
from nnunetv2.study.report.costs import COSTS
from nnunetv2.study.report.data import Data
from nnunetv2.study.report.held_out import HeldOut, find_cases, predict_cases
from nnunetv2.study.report.methods import too_few_cases
from nnunetv2.study.report.page_tables import class_table, main_table, pairs_table
from nnunetv2.study.report.tables import Table


def analyse_test_cases(
    comparison: Comparison, data: Data, held_out: HeldOut, processes: int | None = None
) -> list[Analysis]:
    """Predict and measure test cases.

    Args:
        comparison: whose members are finished.
        data: of the comparison.
        held_out: the test cases.
        processes: that measure; None: as many as there are cores.

    Returns:
        An analysis per number of training cases.

    Raises:
        ExperimentError: something is missing, which is told before anything is predicted, or a prediction fails.
    """
    cases = find_cases(held_out, comparison, data)
    predicted = predict_cases(held_out, comparison, data, cases)
    everything = Analysis(predicted, measure_all(predicted, replace(data, truth_folder=held_out.labels), processes))
    of_size = {
        size: [member for member in predicted.members if member.num_training_cases == size] for size in everything.sizes
    }
    return [Analysis(replace(predicted, members=members), everything.table) for members in of_size.values()]


def held_out_tables(analysis: Analysis, data: Data) -> list[Table]:
    """The tables of the test cases of a number of training cases."""
    (size,) = analysis.sizes
    name, title = ("test", "Test cases") if size is None else (f"test_{size}", f"Test cases, {size} training cases")
    no_costs = pd.DataFrame(index=analysis.experiments, columns=list(COSTS), dtype=float)
    main = main_table(analysis, no_costs)
    tables = [
        replace(main, name=name, title=title, note=_note(analysis, data)),
        replace(class_table(analysis, data), name=f"{name}_classes", title=f"{title}: all metrics by class"),
    ]
    if len(analysis.experiments) > 1:
        tables.append(replace(pairs_table(analysis), name=f"{name}_pairs", title=f"{title}: all pairs"))
    return tables


def methods_of_test_cases(tested: list[Analysis]) -> str:
    """Return what the paragraph on the methods says of test cases, if there are any."""
    if not tested:
        return ""
    cases = tested[0].table.rows["case"].nunique()
    return (
        f"Every model also predicted {cases} test cases; those of an experiment's folds "
        "and seeds are given as the mean of their metrics, and as an ensemble that averages their probabilities."
    )


def _note(analysis: Analysis, data: Data) -> str:
    cases = analysis.values(analysis.classes[0]).index
    sentences = [
        f"Dice: mean [95% interval] over {len(cases)} test cases. The row of an experiment is the mean of the metrics "
        "of its single folds and seeds; its ensemble averages their probabilities."
    ]
    sentences += too_few_cases(analysis)
    known = [case for case in cases if data.truth_file(case).is_file()]
    if known:
        sentences.append(
            f"{len(known)} of them have the name of a training case, such as {known[0]}: of images that were trained "
            "on, the numbers say nothing."
        )
    return " ".join(sentences)
