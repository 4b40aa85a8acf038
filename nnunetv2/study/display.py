"""The progress display of a study that runs: redrawn in place in a terminal, else a line whenever a run changes."""

import shutil
import time
from collections.abc import Sequence
from typing import TextIO

from nnunetv2.study.progress import Progress, headline, read_progress
from nnunetv2.study.runs import Run

SECONDS_BETWEEN_DRAWINGS = 1.0
CLEAR_BELOW = "\x1b[J"
SHOWN = ("running", "failed")


class PlainDisplay:
    """Writes a line for every run that starts or ends, and with it the headline.

    Args:
        study: name of the study.
        runs: its runs.
        num_workers: number of trainings that run at the same time.
        stream: where to write.
    """

    def __init__(self, study: str, runs: Sequence[Run], num_workers: int, stream: TextIO) -> None:
        self.study, self.runs, self.num_workers, self.stream = study, runs, num_workers, stream
        self._drawn_at = 0.0
        self._states: dict[Run, str] = {}

    def __call__(self) -> None:
        """Read how far the runs are and show it, unless that was done a moment ago."""
        if time.monotonic() - self._drawn_at < SECONDS_BETWEEN_DRAWINGS:
            return
        progress = [read_progress(run) for run in self.runs]
        self.stream.write("".join(f"{line}\n" for line in self._lines(progress)))
        self.stream.flush()
        self._drawn_at = time.monotonic()

    def _lines(self, progress: Sequence[Progress]) -> list[str]:
        changed = [str(p) for p in progress if self._states.get(p.run, p.state) != p.state]
        is_first = not self._states
        self._states = {p.run: p.state for p in progress}
        return [*changed, headline(self.study, progress, self.num_workers)] if changed or is_first else []


class TerminalDisplay(PlainDisplay):
    """Redraws the headline and the lines of running and failed runs in place.

    Args:
        study: name of the study.
        runs: its runs.
        num_workers: number of trainings that run at the same time.
        stream: the terminal.
    """

    def __init__(self, study: str, runs: Sequence[Run], num_workers: int, stream: TextIO) -> None:
        super().__init__(study, runs, num_workers, stream)
        self._height = 0

    def _lines(self, progress: Sequence[Progress]) -> list[str]:
        width, height = shutil.get_terminal_size()
        lines = [headline(self.study, progress, self.num_workers)]
        lines += [f"  {p}" for name in SHOWN for p in progress if p.state == name]
        lines = [line[: width - 1] for line in lines[: height - 1]]
        up = f"\x1b[{self._height}A" if self._height else ""
        self._height = len(lines)
        return [up + "\r" + CLEAR_BELOW + lines[0], *lines[1:]]
