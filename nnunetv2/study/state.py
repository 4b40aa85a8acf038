"""Where a run stands, told from what is on disk."""

import contextlib
import fcntl
import functools
import json
from pathlib import Path
from typing import BinaryIO, Literal

from dinov3.errors import ExperimentError
from dinov3.files import replace_when_complete
from nnunetv2.study.runs import Run

State = Literal["waiting", "running", "interrupted", "finished", "failed"]
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")


def state(run: Run) -> State:
    """Return where a run stands.

    It is running while a process holds its lock, which the system releases when that process dies, however it does.

    Raises:
        ExperimentError: the file system has no locks.
    """
    if is_locked(run):
        return "running"
    if is_validated(run):
        return "finished"
    if run.failure.is_file():
        return "failed"
    return "interrupted" if run.log.is_file() or has_checkpoint(run) else "waiting"


def is_locked(run: Run) -> bool:
    """Whether a training holds the lock of a run.

    Raises:
        ExperimentError: the file cannot be read, or the file system has no locks.
    """
    if not run.lock.is_file():
        return False
    try:
        with run.lock.open("rb") as file:
            return not _is_free(file)
    except OSError as error:
        raise ExperimentError(f"cannot tell whether {run.lock} is locked: {error.strerror}") from error


def _is_free(file: BinaryIO) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # held by another process
        return False
    return True


def is_validated(run: Run) -> bool:
    """Whether the summary of the validation, which a training writes last, is there as a whole."""
    return validation_means(run) is not None


def validation_means(run: Run) -> dict[str, float] | None:
    """The metrics of the validation, each the mean of the foreground; None: its summary is not there as a whole."""
    path = run.folder / "validation" / "summary.json"
    try:
        status = path.stat()
    except OSError:
        return None
    return _read_means(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4096)
def _read_means(path: Path, _mtime: int, _size: int) -> dict[str, float] | None:
    """Read a summary, which has a line for every metric of every case; again when it has changed."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text(encoding="utf-8")).get("foreground_mean")
    return None


def has_checkpoint(run: Run) -> bool:
    """Whether a run can be resumed."""
    return any((run.folder / name).is_file() for name in CHECKPOINTS)


def failure_of(run: Run) -> str:
    """Say in one sentence why a run failed, with the path of its log."""
    return f"{run.name} failed ({run.failure.read_text(encoding='utf-8').strip()}); log: {run.log}"


def mark_as_failed(run: Run, reason: str) -> None:
    """Note on disk why a run failed."""
    with replace_when_complete(run.failure) as temporary:
        temporary.write_text(reason, encoding="utf-8")


def forget_failure(run: Run) -> None:
    """Let a run that failed be tried again."""
    run.failure.unlink(missing_ok=True)
