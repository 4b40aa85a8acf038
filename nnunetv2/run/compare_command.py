"""The command `nnUNetv2_vit_compare`: a report on trainings that no study started."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dinov3.errors import ExperimentError
from nnunetv2.run.arguments import OneSentenceParser
from nnunetv2.run.held_out_arguments import add_test_arguments, held_out_of

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
    add("-f", nargs="+", metavar="FOLD", help="folds (default: all that were trained)")
    add("--baseline", metavar="EXPERIMENT", help="what the others are compared with (default: the first)")
    add("--groups", type=Path, metavar="CSV", help="file with the columns case and group, for grouped resampling")
    add("--tubular", nargs="+", type=int, default=[], metavar="LABEL", help="labels of tubular structures")
    add("--nsd-tolerance", type=float, default=1.0, help="of the surface Dice, in mm or pixels (default: %(default)s)")
    add("--processes", type=int, metavar="N", help="that measure the cases (default: one per core)")
    add_test_arguments(parser, "cuda", "cuda")
    return parser


def compare(args: argparse.Namespace) -> None:
    """Write the report that the arguments describe.

    Raises:
        ExperimentError: something is wrong that the user can put right.
    """
    if not args.nsd_tolerance >= 0:
        raise ExperimentError(f"--nsd-tolerance must be at least 0, found {args.nsd_tolerance}")
    if args.processes is not None and args.processes < 1:
        raise ExperimentError(f"--processes must be at least 1, found {args.processes}")
    # pandas and matplotlib are loaded here: `--help` is answered at once
    from nnunetv2.experiment.groups import read_groups
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
    print(f"the report is {args.o / 'report.html'}")
