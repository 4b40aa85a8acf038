"""Lock a file and become another program, which holds the lock until it ends: `… -m nnunetv2.study.locked_command`."""

import contextlib
import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence

LOCKED = 75  # the exit code where another process holds the lock (EX_TEMPFAIL)
ATTEMPTS = 20  # whoever asks for the state of the run has the lock for an instant
SECONDS_BETWEEN_ATTEMPTS = 0.05


def become(lock: str, command: Sequence[str]) -> int:
    """Lock a file and execute a command in place of this process.

    Args:
        lock: path of the file.
        command: program and arguments.

    Returns:
        `LOCKED` where another process holds the lock; otherwise it does not return.

    Raises:
        OSError: the file cannot be opened or locked, such as on a file system without locks.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm's warning is for the process that watches over this one
    for _ in range(ATTEMPTS):
        with inheritable_lock(lock) as locked:
            if locked:
                os.execv(command[0], list(command))
        time.sleep(SECONDS_BETWEEN_ATTEMPTS)
    return LOCKED


@contextlib.contextmanager
def inheritable_lock(path: str) -> Iterator[bool]:
    """Lock a file for this process and the program that it may become; give whether that was possible.

    A POSIX lock belongs to one process, so that it outlives neither the training nor is kept by what it starts.

    Args:
        path: of the file, made where it is missing.

    Raises:
        OSError: it cannot be opened or locked.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.set_inheritable(descriptor, True)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # POSIX leaves to the system which of them says that it is held
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    try:
        sys.exit(become(sys.argv[1], sys.argv[2:]))
    except OSError as error:  # one line, which becomes the reason why the run failed
        sys.exit(f"cannot lock {sys.argv[1]}: {error.strerror}")
