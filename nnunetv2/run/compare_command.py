"""The command `nnUNetv2_vit_compare`: a report on trainings that no study started."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from dinov3.errors import ExperimentError
from nnunetv2.experiment.groups import read_groups
from nnunetv2.run.arguments import INTERRUPTED, OneSentenceParser
from nnunetv2.run.held_out_arguments import add_report_arguments, check_processes, held_out_of, print_path
from nnunetv2.study.report.libraries import check_libraries

COMMAND = "nnUNetv2_vit_compare"


def run_compare_entry(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        arguments: the command line without the command's name; by default that of the process.
    """
    parser = create_parser()
    args = parser.parse_args(arguments)
    try:
        compare(args)
    except ExperimentError as error:
        parser.exit(2, f"{COMMAND}: error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(INTERRUPTED, f"{COMMAND}: stopped; the same command goes on from the cases that were measured\n")


def create_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = OneSentenceParser(
        prog=COMMAND,
        description="Compare trained models by their validation predictions, and write a report with paired statistics "
        "and costs.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "experiments",
        nargs="+",
        metavar="EXPERIMENT",
        help="name of plans (nnUNetPlans_upernet), or folder Trainer__Plans__configuration; NAME=EXPERIMENT names it",
    )
    add("-d", required=True, metavar="DATASET", help="data set, such as 111 or Dataset111_LESAV_AV")
    add("-c", required=True, metavar="CONFIGURATION", help="configuration, such as 2d")
    add("-o", required=True, type=Path, metavar="FOLDER", help="the folder to write")
    add("-f", nargs="+", metavar="FOLD", help="folds (default: all trained ones; `all` only if it is alone)")
    add("--baseline", metavar="EXPERIMENT", help="what the others are compared with (default: the first)")
    add("--groups", type=Path, metavar="CSV", help="file with the columns case and group, for grouped resampling")
    add("--tubular", nargs="+", type=int, default=[], metavar="LABEL", help="labels of tubular structures")
    add("--nsd-tolerance", type=float, default=1.0, help="of the surface Dice, in mm or pixels (default: %(default)s)")
    add_report_arguments(parser, "cuda", "cuda")
    return parser


def compare(args: argparse.Namespace) -> None:
    """Write the report that the arguments describe.

    Raises:
        ExperimentError: something is wrong that the user can put right.
    """
    if not 0 < args.nsd_tolerance < math.inf:
        raise ExperimentError(f"--nsd-tolerance must be a number above 0, found {args.nsd_tolerance}")
    check_processes(args.processes)
    check_libraries()
    # pandas and matplotlib are loaded here: `--help` is answered at once
    from nnunetv2.study.report.folders import comparison_of_folders
    from nnunetv2.study.report.write import write_report

    comparison = comparison_of_folders(
        args.d,
        args.c,
        args.experiments,
        folds=args.f,
        baseline=args.baseline,
        groups=None if args.groups is None else read_groups(args.groups),
        tubular=args.tubular,
        nsd_tolerance=args.nsd_tolerance,
    )
    write_report(comparison, args.o, args.processes, held_out_of(args.test, args.device))
    print_path(args.o)
