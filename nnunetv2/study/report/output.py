"""The folder of a report, which is there as a whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from dinov3.errors import ExperimentError
from nnunetv2.study.report.page import PAGE

FIGURES = "figures"
TABLES = ("cases.csv", "summary.csv", "differences.csv", "test_cases.csv", "test_summary.csv")
FILES = (PAGE, "report.md", "table.tex", *TABLES)


def check_output(output: Path) -> None:
    """Check that a report can be written to a folder, before minutes are spent on it.

    Raises:
        ExperimentError: there is something else, or it cannot be written.
    """
    if output.exists() and not output.is_dir():
        raise ExperimentError(f"-o: {output} is not a folder")
    other = next(_other_files(output), None) if output.is_dir() else None
    if other is not None:
        raise ExperimentError(f"-o: {output} holds other files than a report, such as {other}; name a new folder")
    with _writable(output):
        output.resolve().parent.mkdir(parents=True, exist_ok=True)
        probe = _temporary(output)
        probe.mkdir()
        probe.rmdir()


def _other_files(output: Path) -> Iterator[Path]:
    """What would be lost if a report took the place of a folder."""
    is_report = (output / PAGE).is_file()
    for path in sorted(output.iterdir()):
        if is_report and path.name == FIGURES:
            yield from (one.relative_to(output) for one in sorted(path.iterdir()) if one.suffix not in (".png", ".pdf"))
        elif not is_report or path.name not in FILES:
            yield path.relative_to(output)


def _temporary(output: Path) -> Path:
    folder = output.resolve()  # of a link what it points to
    return folder.with_name(f".{folder.name}.{uuid4().hex[:8]}.tmp")


@contextmanager
def _writable(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ExperimentError(f"-o: cannot write {output}: {error.strerror} ({error.filename})") from error


@contextmanager
def complete_folder(output: Path) -> Iterator[Path]:
    """Give a temporary folder beside the output, which takes its place at the end.

    Raises:
        ExperimentError: it cannot be written or moved; an older report is where it was.
    """
    temporary = _temporary(output)
    with _writable(output):
        temporary.mkdir()
        try:
            yield temporary
            _take_the_place(temporary, output.resolve())
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _take_the_place(temporary: Path, output: Path) -> None:
    """Move a folder to where an older one may be, which is lost only when the new one is there."""
    if not output.exists():
        temporary.rename(output)
        return
    old = _temporary(output)
    output.rename(old)
    try:
        temporary.rename(output)
    except BaseException:
        old.rename(output)
        raise
    shutil.rmtree(old, ignore_errors=True)
