"""Write the report on a comparison: everything in one folder."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from uuid import uuid4

import pandas as pd

from dinov3.errors import ExperimentError
from nnunetv2.study.members import Comparison
from nnunetv2.study.report.analysis import Analysis
from nnunetv2.study.report.case_table import measure_all
from nnunetv2.study.report.costs import cost_table, run_table
from nnunetv2.study.report.data import data_of
from nnunetv2.study.report.draw import Drawn, draw_all
from nnunetv2.study.report.figures.style import drawing_style
from nnunetv2.study.report.held_out import HeldOut
from nnunetv2.study.report.held_out_tables import analyse_test_cases, held_out_tables, methods_of_test_cases
from nnunetv2.study.report.methods import methods, warnings
from nnunetv2.study.report.metrics import BY_KEY
from nnunetv2.study.report.page import DPI, Content, write_page
from nnunetv2.study.report.page_tables import budget_table, class_table, main_table, pairs_table, spread_table
from nnunetv2.study.report.selection import check_cases, comparable
from nnunetv2.study.report.tables import to_latex

PAGE = "report.html"


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
    costs = cost_table(runs)
    with _complete_folder(output) as folder:
        _write_frames(analysis, folder)
        _write_test_frames(tested, folder)
        tables = [main_table(analysis, costs), *(table for one in tested for table in held_out_tables(one, data))]
        tables.append(class_table(analysis, data))
        tables += [pairs_table(analysis)] if len(analysis.experiments) > 1 else []
        tables += [spread_table(analysis), budget_table(runs)]
        (folder / "table.tex").write_text(to_latex(tables[0], f"tab:{comparison.name}"), encoding="utf-8")
        (folder / "figures").mkdir()
        drawn = []
        with drawing_style():
            for figure in draw_all(analysis, data, costs):
                _save(figure, folder / "figures")
                drawn.append(figure)
        definitions = [
            (BY_KEY[key].label, BY_KEY[key].definition.format(unit=data.unit, tolerance=data.nsd_tolerance))
            for key in dict.fromkeys(key for one in (analysis, *tested) for key in one.metrics)
        ]
        cases = len(analysis.values(analysis.classes[0]))
        runs_and_cases = f"{cases} cases, {len(comparison.members)} runs"
        subtitle = f"{comparison.dataset}, {comparison.configuration}: {runs_and_cases}; {date.today():%d %B %Y}"
        write_page(
            Content(
                comparison.name,
                subtitle,
                comparison.missing,
                warnings(analysis, runs),
                tables,
                drawn,
                f"{methods(analysis, data, runs)} {methods_of_test_cases(tested)}".strip(),
                definitions,
            ),
            folder,
        )


def check_output(output: Path) -> None:
    """Check that a report can be written to a folder, before minutes are spent on it.

    Raises:
        ExperimentError: there is something else, or it cannot be written.
    """
    if output.exists() and not output.is_dir():
        raise ExperimentError(f"-o: {output} is not a folder")
    if output.is_dir() and any(output.iterdir()) and not (output / PAGE).is_file():
        raise ExperimentError(f"-o: {output} holds other files than a report; name a new or an empty folder")
    with _writable(output):
        output.absolute().parent.mkdir(parents=True, exist_ok=True)
        probe = _temporary(output)
        probe.mkdir()
        probe.rmdir()


def _temporary(output: Path) -> Path:
    return output.absolute().with_name(f".{output.absolute().name}.{uuid4().hex[:8]}.tmp")


@contextmanager
def _writable(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ExperimentError(f"-o: cannot write {output}: {error.strerror} ({error.filename})") from error


@contextmanager
def _complete_folder(output: Path) -> Iterator[Path]:
    """Give a temporary folder beside the output, which takes its place at the end."""
    temporary, old = _temporary(output), _temporary(output)
    with _writable(output):
        temporary.mkdir()
        try:
            yield temporary
            if output.exists():
                output.rename(old)
            temporary.rename(output)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


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
