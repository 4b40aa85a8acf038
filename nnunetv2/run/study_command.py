"""The command `nnUNetv2_vit_study`: run the experiments of a study, tell how far they are, report on them."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.run.arguments import INTERRUPTED, OneSentenceParser
from nnunetv2.run.devices import DEVICES
from nnunetv2.run.held_out_arguments import add_report_arguments, check_processes, held_out_of, print_path
from nnunetv2.run.study_checks import check_runs
from nnunetv2.run.study_on_slurm import add_slurm_options, check_study, submit_study, wait_for_jobs
from nnunetv2.run.study_workers import local_workers
from nnunetv2.study.comparison import comparison_of
from nnunetv2.study.config import StudyConfig, read_study
from nnunetv2.study.display import PlainDisplay, TerminalDisplay
from nnunetv2.study.local import run_locally
from nnunetv2.study.progress import read_progress, table
from nnunetv2.study.report.libraries import check_libraries
from nnunetv2.study.runs import Run, expand
from nnunetv2.study.state import failure_of, forget_failure, state

COMMAND = "nnUNetv2_vit_study"


def run_study_entry(arguments: Sequence[str] | None = None) -> None:
    """Run the command; end with one sentence and exit code 2 on what the user can put right.

    Args:
        arguments: the command line without the command's name; None: that of the process.
    """
    args = create_parser().parse_args(arguments)
    try:
        study = _with_options(read_study(args.study), args)
        code = args.action(study, args)
    except ExperimentError as error:
        print(f"{COMMAND}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{COMMAND}: {args.when_stopped(args)}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    if code:
        sys.exit(code)


def create_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = OneSentenceParser(prog=COMMAND, description="Compare experiments: a study is one YAML file.")
    actions = parser.add_subparsers(required=True, metavar="run|status|report")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("study", help="the YAML file of the study")
    common.add_argument("-p", dest="plans", help="plans to derive from (default: the study's key plans)")
    run = actions.add_parser("run", parents=[common], help="train what is not trained yet", allow_abbrev=False)
    run.set_defaults(action=run_study, when_stopped=_run_was_stopped)
    _add_training_options(run)
    add_slurm_options(run.add_argument_group("on a Slurm cluster"))
    status = actions.add_parser("status", parents=[common], help="tell how far all runs are", allow_abbrev=False)
    status.set_defaults(action=show_status, when_stopped=lambda args: "stopped")
    report = actions.add_parser("report", parents=[common], help="report on the finished runs", allow_abbrev=False)
    report.add_argument("-o", dest="output", type=Path, required=True, help="folder of the report")
    add_report_arguments(report, None, "the study's key device")
    report.set_defaults(action=report_on, when_stopped=_report_was_stopped)
    return parser


def _run_was_stopped(args: argparse.Namespace) -> str:
    if args.on == "slurm":
        return f"stopped; jobs that were submitted go on: {COMMAND} status {args.study}"
    return "stopped; the same command goes on from the last checkpoints"


def _report_was_stopped(args: argparse.Namespace) -> str:
    return f"stopped before the report was written; {args.output} is as it was"


def _add_training_options(run: argparse.ArgumentParser) -> None:
    add = run.add_argument
    add("-device", choices=DEVICES, help="where to train (default: the study's key device)")
    add("-num_gpus", type=int, help="GPUs per training (default: the study's key num_gpus)")
    add("--npz", action="store_true", default=None, help="save the probabilities of the validation")
    add("--retry-failed", action="store_true", help="try runs that failed again")
    add("--on", choices=("local", "slurm"), default="local", help="where to run (default: %(default)s)")
    add("--workers", type=int, help="trainings at the same time (default: one per GPU, on the CPU one)")


def _with_options(study: StudyConfig, args: argparse.Namespace) -> StudyConfig:
    """The study with what the command line sets."""
    if getattr(args, "num_gpus", None) is not None and args.num_gpus < 1:
        raise ExperimentError(f"-num_gpus must be at least 1, found {args.num_gpus}")
    given = {key: getattr(args, key, None) for key in ("plans", "device", "num_gpus", "npz")}
    return dataclasses.replace(study, **{key: value for key, value in given.items() if value is not None})


def run_study(study: StudyConfig, args: argparse.Namespace) -> int:
    """Train what is not trained yet; return the exit code.

    Raises:
        ExperimentError: something is wrong that the user can put right; nothing is started.
    """
    runs = expand(study)
    if args.on == "slurm":
        return _run_on_slurm(study, runs, args)
    from nnunetv2.run.devices import find_device

    workers = local_workers(study, args.workers)
    check_runs(study, runs, find_device(study.device, study.num_gpus), len(workers))
    _prepare_retry(runs, args)
    run_locally(runs, workers, _display(study, runs, len(workers)))
    _print_table(study, runs, len(workers))
    return _tell_unfinished(runs)


def _run_on_slurm(study: StudyConfig, runs: Sequence[Run], args: argparse.Namespace) -> int:
    check_study(study, runs, args)
    _prepare_retry(runs, args)
    number = submit_study(study, runs, args)
    print(f"{number} jobs submitted; to see how far they are: {COMMAND} status {args.study}")
    if not args.wait:
        return 0
    wait_for_jobs(runs, _display(study, runs, len(runs)))
    _print_table(study, runs, len(runs))
    return _tell_unfinished(runs)


def _prepare_retry(runs: Sequence[Run], args: argparse.Namespace) -> None:
    for run in runs if args.retry_failed else ():
        if state(run) == "failed":
            forget_failure(run)


def _display(study: StudyConfig, runs: Sequence[Run], num_workers: int) -> PlainDisplay:
    display = TerminalDisplay if sys.stdout.isatty() else PlainDisplay
    return display(study.name, runs, num_workers, sys.stdout)


def _tell_failures(runs: Sequence[Run]) -> int:
    failed = [run for run in runs if state(run) == "failed"]
    for run in failed:
        print(f"{COMMAND}: {failure_of(run)}", file=sys.stderr)
    return 1 if failed else 0


def _tell_unfinished(runs: Sequence[Run]) -> int:
    """Name the runs that failed, and those that somebody else stopped; return the exit code."""
    stopped = [run for run in runs if state(run) in ("waiting", "interrupted")]
    for run in stopped:
        print(f"{COMMAND}: {run.name} is not finished; the same command resumes it; log: {run.log}", file=sys.stderr)
    return max(_tell_failures(runs), int(bool(stopped)))


def show_status(study: StudyConfig, args: argparse.Namespace) -> int:
    """Print how far all runs are, from what is on disk; return the exit code."""
    runs = expand(study)
    num_running = sum(state(run) == "running" for run in runs)
    _print_table(study, runs, num_running)
    _tell_failures(runs)
    return 0


def _print_table(study: StudyConfig, runs: Sequence[Run], num_workers: int) -> None:
    for line in table(study.name, [read_progress(run) for run in runs], num_workers):
        print(line)


def report_on(study: StudyConfig, args: argparse.Namespace) -> int:
    """Write the report on the finished runs; return the exit code.

    Raises:
        ExperimentError: no run is finished, or the report cannot be written.
    """
    check_processes(args.processes)
    check_libraries()
    from nnunetv2.study.report.write import write_report

    write_report(comparison_of(study), args.output, args.processes, held_out_of(args.test, study.device))
    print_path(args.output)
    return 0


if __name__ == "__main__":
    run_study_entry()
