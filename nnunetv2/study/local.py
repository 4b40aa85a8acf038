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
    with _noted_requests_to_stop() as requests:
        try:
            while not requests:
                for worker, (run, process) in list(busy.items()):
                    if process.poll() is not None:
                        conclude(run, process.returncode)
                        del busy[worker]
                for worker in range(len(workers)):
                    run = _next(queue) if worker not in busy and not requests else None
                    if run is not None:
                        busy[worker] = run, start(run, workers[worker])
                tell()
                if not busy and not requests:
                    return
                time.sleep(SECONDS_BETWEEN_LOOKS)
        finally:
            stop(process for _, process in busy.values())
    raise KeyboardInterrupt


def _next(queue: deque[Run]) -> Run | None:
    """The first run of a queue that is to be trained; another process may have come first."""
    while queue:
        run = queue.popleft()
        if state(run) in ("waiting", "interrupted"):
            return run
    return None


@contextlib.contextmanager
def _noted_requests_to_stop() -> Iterator[list[int]]:
    """Only note Ctrl-C and requests to terminate: an exception could come when a training runs that nobody knows of."""
    requests: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        requests.append(number)

    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in former.items():
        if handler is not signal.SIG_IGN:  # as for Ctrl-C in the background of a script
            signal.signal(number, note)
    try:
        yield requests
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
