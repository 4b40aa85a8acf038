"""`nnUNetv2_vit_study run --on slurm`: its options, the submission of the jobs, and waiting for them."""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.run.study_checks import check_runs
from nnunetv2.run.study_workers import cores_of
from nnunetv2.study.config import StudyConfig
from nnunetv2.study.runs import Run, study_folder
from nnunetv2.study.slurm import check_slurm, job_of, minutes_of, queued_jobs, submit

SECONDS_BETWEEN_QUERIES = 5.0
MAX_FAILED_QUERIES = 12  # a minute: a controller that restarts or is busy does not answer for a while
TIME_KEYS = ("time", "timeout_min")  # of submitit
SIGNAL_DELAY = 90  # submitit's: seconds before the limit at which a job is told to stop
SIGNAL_TOLERANCE = 60  # seconds by which Slurm may send a signal earlier


class _YamlWithoutBase60(yaml.SafeLoader):
    """Reads 1:00:00 as it stands there, and not as the number 3600."""

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        if ":" in node.value:
            return node.value
        return self.construct_yaml_int(node) if node.tag.endswith("int") else self.construct_yaml_float(node)


for _kind in ("int", "float"):
    _YamlWithoutBase60.add_constructor(f"tag:yaml.org,2002:{_kind}", _YamlWithoutBase60.construct_number)


def add_slurm_options(group: Any) -> None:
    """Add the options to a group of the parser of `run`."""
    add = group.add_argument
    add("--partition", help="partition of the jobs")
    add("--time", default="1-0", help="limit of a job, after which it is requeued and resumed (default: %(default)s)")
    add("--gpus", type=int, help="GPUs of a job (default: num_gpus; on the CPU none)")
    add("--cpus", type=int, default=8, help="cores of a job (default: %(default)s)")
    add("--slurm", action="append", default=[], metavar="KEY=VALUE", help="any other option of submitit: mem_gb=32")
    add("--wait", action="store_true", help="wait for the jobs, and show how far they are")


def check_study(study: StudyConfig, runs: Sequence[Run], args: argparse.Namespace) -> None:
    """Check everything that the jobs need, before anything is changed.

    Args:
        study: the study.
        runs: all of its runs.
        args: the command line.

    Raises:
        ExperimentError: something is wrong that the user can put right.
    """
    check_slurm()
    slurm_options(study, args)
    check_runs(study, runs, None, len(runs))


def submit_study(study: StudyConfig, runs: Sequence[Run], args: argparse.Namespace) -> int:
    """Submit the runs that are not in the queue yet; return the number of new jobs (see `check_study`).

    Raises:
        ExperimentError: Slurm refuses the jobs.
    """
    options = slurm_options(study, args)
    return len(submit(runs, study_folder(study) / "slurm", cores_of(args.cpus, study.device), options))


def slurm_options(study: StudyConfig, args: argparse.Namespace) -> dict[str, Any]:
    """Return the parameters of submitit's executor.

    Raises:
        ExperimentError: an option has no possible value.
    """
    if args.cpus < 1:
        raise ExperimentError(f"--cpus must be at least 1, found {args.cpus}")
    if args.gpus is not None and args.gpus < 0:
        raise ExperimentError(f"--gpus must be at least 0, found {args.gpus}")
    options: dict[str, Any] = {"job_name": study.name, "time": minutes_of(args.time), "cpus_per_task": args.cpus}
    gpus = args.gpus if args.gpus is not None else (study.num_gpus if study.device == "cuda" else 0)
    options |= {"gpus_per_node": gpus} if gpus else {}
    options |= {"partition": args.partition} if args.partition else {}
    for option in args.slurm:
        key, value = _parse(option)
        options |= {"time": minutes_of(str(value), f"--slurm {key}")} if key in TIME_KEYS else {key: value}
    _check_time(options["time"], options.get("signal_delay_s", SIGNAL_DELAY))
    return options


def _parse(option: str) -> tuple[str, Any]:
    key, equals, value = option.partition("=")
    if not key or not equals:
        raise ExperimentError(f"--slurm takes KEY=VALUE, such as mem_gb=32, found {option!r}")
    try:
        return key, yaml.load(value, _YamlWithoutBase60)
    except yaml.YAMLError as error:
        raise ExperimentError(f"--slurm {key}: the value must be YAML, found {value!r}") from error


def _check_time(minutes: int, signal_delay: Any) -> None:
    if type(signal_delay) is not int or signal_delay < 1:
        raise ExperimentError(f"--slurm signal_delay_s takes a number of seconds, at least 1, found {signal_delay!r}")
    smallest = (signal_delay + SIGNAL_TOLERANCE) // 60 + 1
    if minutes < smallest:
        raise ExperimentError(
            f"--time must be at least {smallest} minutes, because jobs are told to stop up to "
            f"{signal_delay + SIGNAL_TOLERANCE} s before their end, found {minutes}"
        )


def wait_for_jobs(runs: Sequence[Run], display: Callable[[], None]) -> None:
    """Wait until no job of the runs is in the queue, whichever command has submitted it.

    Args:
        runs: of a study.
        display: called again and again; shows how far the runs are.

    Raises:
        ExperimentError: Slurm does not answer for long.
    """
    jobs = {job_of(run) for run in runs}
    failed_queries = 0
    while True:
        try:
            if not jobs & queued_jobs():
                return
            failed_queries = 0
        except ExperimentError as error:
            failed_queries += 1
            if failed_queries > MAX_FAILED_QUERIES:
                raise ExperimentError(f"{error}; no longer waiting, but the jobs go on") from error
        display()
        time.sleep(SECONDS_BETWEEN_QUERIES)
