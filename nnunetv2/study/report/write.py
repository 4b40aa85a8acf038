"""Write the report on a comparison: everything in one folder."""

from datetime import date
from pathlib import Path

import pandas as pd

from nnunetv2.study.members import Comparison
from nnunetv2.study.report.analysis import Analysis
from nnunetv2.study.report.case_table import measure_all
from nnunetv2.study.report.costs import cost_table, run_table
from nnunetv2.study.report.data import Data, data_of
from nnunetv2.study.report.draw import Drawn, draw_all
from nnunetv2.study.report.figures.style import drawing_style
from nnunetv2.study.report.held_out import HeldOut
from nnunetv2.study.report.held_out_tables import analyse_test_cases, held_out_tables, methods_of_test_cases
from nnunetv2.study.report.methods import methods, warnings
from nnunetv2.study.report.metrics import BY_KEY
from nnunetv2.study.report.output import FIGURES, check_output, complete_folder
from nnunetv2.study.report.page import DPI, Content, write_page
from nnunetv2.study.report.page_tables import budget_table, class_table, main_table, pairs_table, spread_table
from nnunetv2.study.report.selection import check_cases, comparable
from nnunetv2.study.report.tables import Table, to_latex


def write_report(
    comparison: Comparison, output: Path, processes: int | None = None, held_out: HeldOut | None = None
) -> None:
    """Measure the predictions of a comparison and write the report.

    Args:
        comparison: the trained folds, finished or not.
        output: the folder to write; a report that is there already is replaced when the new one is complete.
        processes: that measure; None: as many as there are cores.
        held_out: test cases to predict and to report on as well.

    Raises:
        ExperimentError: there is nothing to compare, a file cannot be read, or the folder cannot be written.
    """
    check_output(output)
    comparison = comparable(comparison)
    data = data_of(comparison)
    check_cases(comparison, data.file_ending)
    tested = [] if held_out is None else analyse_test_cases(comparison, data, held_out, processes)
    analysis = Analysis(comparison, measure_all(comparison, data, processes))
    runs = run_table(analysis.largest, data.file_ending)
    with complete_folder(output) as folder:
        _write_frames(analysis, folder)
        _write_test_frames(tested, folder)
        content = _content(analysis, tested, data, runs, folder)
        (folder / "table.tex").write_text(to_latex(content.tables[0], f"tab:{comparison.name}"), encoding="utf-8")
        write_page(content, folder)


def _content(analysis: Analysis, tested: list[Analysis], data: Data, runs: pd.DataFrame, folder: Path) -> Content:
    """What the page says; its figures are written to the folder."""
    comparison, costs = analysis.comparison, cost_table(runs)
    cases = len(analysis.values(analysis.classes[0]))
    runs_and_cases = f"{cases} cases, {len(comparison.members)} runs"
    return Content(
        name=comparison.name,
        subtitle=f"{comparison.dataset}, {comparison.configuration}: {runs_and_cases}; {date.today():%d %B %Y}",
        missing=comparison.missing,
        warnings=warnings(analysis, runs),
        tables=_tables(analysis, tested, data, runs, costs),
        figures=_figures(analysis, data, costs, folder / FIGURES),
        methods=f"{methods(analysis, data, runs)} {methods_of_test_cases(tested)}".strip(),
        definitions=[
            (BY_KEY[key].label, BY_KEY[key].definition.format(unit=data.unit, tolerance=data.nsd_tolerance))
            for key in dict.fromkeys(key for one in (analysis, *tested) for key in one.metrics)
        ],
    )


def _tables(
    analysis: Analysis, tested: list[Analysis], data: Data, runs: pd.DataFrame, costs: pd.DataFrame
) -> list[Table]:
    tables = [main_table(analysis, costs), *(table for one in tested for table in held_out_tables(one, data))]
    tables.append(class_table(analysis, data))
    tables += [pairs_table(analysis)] if len(analysis.experiments) > 1 else []
    return [*tables, spread_table(analysis), budget_table(runs)]


def _figures(analysis: Analysis, data: Data, costs: pd.DataFrame, folder: Path) -> list[Drawn]:
    folder.mkdir()
    drawn = []
    with drawing_style():
        for figure in draw_all(analysis, data, costs):
            _save(figure, folder)
            drawn.append(figure)
    return drawn


def _save(drawn: Drawn, folder: Path) -> None:
    drawn.figure.savefig(folder / f"{drawn.name}.png", dpi=DPI)
    drawn.figure.set_layout_engine("none")  # the layout of the first stays, and takes most of the time
    drawn.figure.savefig(folder / f"{drawn.name}.pdf", dpi=DPI)


def _write_frames(analysis: Analysis, folder: Path) -> None:
    analysis.table.rows.to_csv(folder / "cases.csv", index=False)
    analysis.summary.to_csv(folder / "summary.csv", index=False)
    if len(analysis.experiments) > 1:
        analysis.differences.to_csv(folder / "differences.csv", index=False)


def _write_test_frames(tested: list[Analysis], folder: Path) -> None:
    if tested:
        tested[0].table.rows.to_csv(folder / "test_cases.csv", index=False)
        pd.concat([analysis.summary for analysis in tested]).to_csv(folder / "test_summary.csv", index=False)
