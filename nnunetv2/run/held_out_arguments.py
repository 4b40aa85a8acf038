"""The options of the commands that write reports: test cases, and what predicts them."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2.run.devices import DEVICES, find_device

if TYPE_CHECKING:
    from nnunetv2.study.report.held_out import HeldOut


def add_test_arguments(parser: argparse.ArgumentParser, default_device: str | None, default_name: str) -> None:
    """Add `--test` and `-device`.

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


def held_out_of(test: list[Path] | None, device: str) -> "HeldOut | None":
    """Return the test cases of the arguments, if there are any.

    Raises:
        ExperimentError: this machine has no such device.
    """
    from nnunetv2.study.report.held_out import HeldOut

    return None if test is None else HeldOut(*test, find_device(device))
