"""The runs of a study on this machine: a queue, and workers that train one run each."""

import contextlib
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from subprocess import Popen
from types import FrameType

from nnunetv2.study.runs import Run
from nnunetv2.study.state import state
from nnunetv2.study.training import conclude, start, stop

SECONDS_BETWEEN_LOOKS = 0.2


def run_locally(runs: Sequence[Run], workers: Sequence[Mapping[str, str]], tell: Callable[[], None]) -> None:
    """Train the runs that are not finished, have not failed, and are not trained by another process.

    Args:
        runs: of a study.
        workers: environment variables of the trainings of each worker, such as its GPU.
        tell: called again and again; shows how far the runs are.

    Raises:
        KeyboardInterrupt: by Ctrl-C or a request to terminate, after all trainings ended; `run` again resumes them.
    """
    queue = deque(runs)
    busy: dict[int, tuple[Run, Popen]] = {}
    with _terminated_like_interrupted():
        try:
            while True:
                for worker, (run, process) in list(busy.items()):
                    if process.poll() is not None:
                        conclude(run, process.returncode)
                        del busy[worker]
                for worker in range(len(workers)):
                    run = _next(queue) if worker not in busy else None
                    if run is not None:
                        busy[worker] = run, start(run, workers[worker])
                tell()
                if not busy:
                    return
                time.sleep(SECONDS_BETWEEN_LOOKS)
        finally:
            stop(process for _, process in busy.values())


def _next(queue: deque[Run]) -> Run | None:
    """The first run of a queue that is to be trained; another process may have come first."""
    while queue:
        run = queue.popleft()
        if state(run) in ("waiting", "interrupted"):
            return run
    return None


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
