"""The training of one run: an ordinary `nnUNetv2_train_vit` in a process of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping

from nnunetv2.study.locked_command import LOCKED
from nnunetv2.study.runs import Run
from nnunetv2.study.state import forget_failure, has_checkpoint, is_locked, is_validated, mark_as_failed

TRAIN = (sys.executable, "-m", "nnunetv2.run.run_training_vit")
# How a training ends that somebody stopped: it has not failed, and goes on when the study does.
STOPPED = (-signal.SIGINT, -signal.SIGTERM, -signal.SIGUSR2, 128 + signal.SIGINT, 128 + signal.SIGTERM)
SECONDS_TO_STOP = 30
SECONDS_BETWEEN_LOOKS = 0.05
LOG_END = 4096


def start(run: Run, environment: Mapping[str, str]) -> subprocess.Popen:
    """Launch the training of a run, and wait until it holds the run's lock or has ended.

    Args:
        run: one that is not finished.
        environment: variables that it gets beside those of this process.
    """
    process = launch(run, environment)
    while process.poll() is None and not is_locked(run):
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return process


def launch(run: Run, environment: Mapping[str, str]) -> subprocess.Popen:
    """Launch the training of a run, or resume it; its output goes to the run's log.

    Args:
        run: one that is not finished.
        environment: variables that it gets beside those of this process.
    """
    run.log.parent.mkdir(parents=True, exist_ok=True)
    forget_failure(run)
    arguments = run.resume if has_checkpoint(run) else run.start
    command = (sys.executable, "-m", "nnunetv2.study.locked_command", str(run.lock), *TRAIN, *arguments)
    with run.log.open("ab") as log:
        variables = {**os.environ, **environment}
        return subprocess.Popen(command, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def conclude(run: Run, code: int) -> None:
    """Note on disk that a training failed, if it did.

    Args:
        run: the run.
        code: exit code of its process.
    """
    if code in (LOCKED, *STOPPED) or (code == 0 and is_validated(run)):
        return
    if code < 0:
        mark_as_failed(run, f"killed by {signal.Signals(-code).name}, such as where memory runs out")
    else:
        mark_as_failed(run, f"exit code {code}: {_last_line(run)}")


def _last_line(run: Run) -> str:
    with run.log.open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_END))
        lines = log.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


def stop(processes: Iterable[subprocess.Popen]) -> None:
    """Interrupt trainings and wait for their ends; kill those that take too long."""
    processes = list(processes)
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    for process in processes:
        try:
            process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
