"""The options of the commands that write reports: test cases, what predicts them, and how many processes measure."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.run.devices import DEVICES, find_device

if TYPE_CHECKING:
    from nnunetv2.study.report.held_out import HeldOut


def add_report_arguments(parser: argparse.ArgumentParser, default_device: str | None, default_name: str) -> None:
    """Add `--test`, `-device` and `--processes`.

    Args:
        parser: of the command.
        default_device: where `-device` is not given.
        default_name: what the help calls it.
    """
    parser.add_argument(
        "--test",
        nargs=2,
        type=Path,
        metavar=("IMAGES", "LABELS"),
        help="folders of test cases, which all trained folds and their ensembles predict",
    )
    parser.add_argument(
        "-device", choices=DEVICES, default=default_device, help=f"what predicts test cases (default: {default_name})"
    )
    parser.add_argument(
        "--processes", type=int, metavar="N", help="that measure the cases (default: as many as there are cores)"
    )


def check_processes(number: int | None) -> None:
    """Check the number of `--processes`.

    Raises:
        ExperimentError: it is below 1.
    """
    if number is not None and number < 1:
        raise ExperimentError(f"--processes must be at least 1, found {number}")


def print_path(report: Path) -> None:
    """Say where the page of a report is."""
    from nnunetv2.study.report.page import PAGE  # loads matplotlib

    print(f"the report is {report / PAGE}")


def held_out_of(test: list[Path] | None, device: str) -> "HeldOut | None":
    """Return the test cases of the arguments, if there are any.

    Raises:
        ExperimentError: this machine has no such device.
    """
    from nnunetv2.study.report.held_out import HeldOut

    return None if test is None else HeldOut(*test, find_device(device))
