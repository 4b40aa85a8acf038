"""The runs of a study on a Slurm cluster: one job array, submitted through submitit."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinov3.errors import ExperimentError, in_one_line
from nnunetv2.study.runs import Run
from nnunetv2.study.state import state
from nnunetv2.study.training import STOPPED, conclude, launch, stop

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

MAX_TIMEOUTS = 1000  # submitit's own limit of 3 would end a long training on a short partition
TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")


class TrainingJob:
    """What a job does: train one run. submitit calls `checkpoint` before it requeues the job.

    Args:
        run: the run.
        environment: variables that the training gets beside those of the job.
    """

    def __init__(self, run: Run, environment: Mapping[str, str]) -> None:
        self.run, self.environment = run, environment
        self._process: subprocess.Popen | None = None

    def __call__(self) -> None:
        """Train, or resume, unless the run is finished or another process trains it."""
        if state(self.run) in ("running", "finished"):
            return
        self._process = launch(self.run, self.environment)
        # not `wait`: its lock would be held when submitit's signal handler calls `checkpoint`
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        code = self._process.wait()
        conclude(self.run, code)
        if code in STOPPED and not _is_ended_by_slurm():
            _requeue_this_job()

    def checkpoint(self) -> "DelayedSubmission":
        """Interrupt the training; the requeued job goes on from its last checkpoint."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            stop([self._process])
        return DelayedSubmission(TrainingJob(self.run, self.environment))


def _is_ended_by_slurm() -> bool:
    """Whether Slurm itself ends this job, to cancel it or to start it again, and not only sent it a signal.

    What ends it at its time limit is no reason to end for good.

    Raises:
        subprocess.CalledProcessError: Slurm does not answer.
    """
    command = ["scontrol", "show", "job", "--oneliner", os.environ["SLURM_JOB_ID"]]
    job = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return "JobState=RUNNING" not in job and "Reason=TimeLimit" not in job


def _requeue_this_job() -> None:
    """Call submitit's handler of preemption, which calls `checkpoint`, requeues the job and exits."""
    from submitit import JobEnvironment

    signal.raise_signal(signal.Signals[f"SIG{JobEnvironment.USR_SIG}"])


def minutes_of(time: str, option: str = "--time") -> int:
    """Return the minutes of a duration as Slurm writes it: `90`, `1:30:00`, `2-0`, `2-12:00`.

    Args:
        time: the duration.
        option: the option that it is the value of, for the message.

    Raises:
        ExperimentError: it is none.
    """
    match = TIME.fullmatch(time)
    if match is None:
        raise ExperimentError(f"{option} takes minutes, hours:minutes:seconds or days-hours, found {time!r}")
    parts = [int(match[name] or 0) for name in ("first", "second", "third")]
    if match["days"] is not None:
        hours, minutes, seconds = parts
        hours += 24 * int(match["days"])
    elif match["third"] is not None:
        hours, minutes, seconds = parts
    else:
        hours, minutes, seconds = 0, *parts[:2]
    return 60 * hours + minutes + (seconds > 0)


def check_slurm() -> None:
    """Check that jobs can be submitted from here.

    Raises:
        ExperimentError: submitit is not installed, or there is no Slurm.
    """
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise ExperimentError('--on slurm needs submitit: pip install ".[study]"') from error
    missing = [name for name in ("sbatch", "srun", "squeue") if shutil.which(name) is None]
    if missing:
        raise ExperimentError(f"--on slurm: no {missing[0]} on this machine; is it a node of a Slurm cluster?")


def submit(
    runs: Sequence[Run], folder: Path, environment: Mapping[str, str], options: Mapping[str, Any]
) -> dict[Run, str]:
    """Submit the runs that are to be trained and are not in Slurm's queue yet, as one job array.

    Args:
        runs: of a study.
        folder: for submitit's files and the output of its jobs, on a file system that all nodes share.
        environment: variables that each training gets beside those of its job.
        options: of `submitit.SlurmExecutor.update_parameters`.

    Returns:
        The number of the job of each run that was submitted.

    Raises:
        ExperimentError: an option is unknown, or Slurm refuses the jobs.
    """
    import submitit

    in_queue = queued_jobs()
    runs = [run for run in runs if state(run) in ("waiting", "interrupted") and job_of(run) not in in_queue]
    if not runs:
        return {}
    try:
        executor = submitit.SlurmExecutor(folder, max_num_timeout=MAX_TIMEOUTS)
        executor.update_parameters(**_requeued(options))
        jobs = executor.submit_array([TrainingJob(run, environment) for run in runs])
    except (ValueError, TypeError) as error:
        raise ExperimentError(f"--slurm: {' '.join(str(error).split())}") from error
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, OSError) as error:
        raise ExperimentError(f"Slurm takes no job: {in_one_line(error)}") from error
    numbers = {run: job.job_id for run, job in zip(runs, jobs, strict=True)}
    for run, number in numbers.items():
        _job_file(run).write_text(number, encoding="utf-8")
    return numbers


def _requeued(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with that of a job that may be requeued, which not every cluster has as its default."""
    others = options.get("additional_parameters") or {}
    return {**options, "additional_parameters": {"requeue": True, **others}}


def job_of(run: Run) -> str | None:
    """The number of the job that was last submitted for a run; None: none was."""
    file = _job_file(run)
    return file.read_text(encoding="utf-8") if file.is_file() else None


def _job_file(run: Run) -> Path:
    return run.log.with_suffix(".job")


def queued_jobs() -> set[str]:
    """Numbers of the jobs that wait or run, such as `12_3`.

    Raises:
        ExperimentError: Slurm does not answer.
    """
    command = ["squeue", "--noheader", "--array", "--format=%i"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise ExperimentError(f"Slurm does not answer: {' '.join(result.stderr.split())}")
    return set(result.stdout.split())
