"""The checkpoints of a training: the last ones, the best and the final one."""

import logging
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from dinov3.errors import ExperimentError, in_one_line
from dinov3.files import replace_when_complete

PATTERN = "checkpoint_*.pth"
BEST, FINAL = "checkpoint_best.pth", "checkpoint_final.pth"
CONTENT = ("model", "optimizer", "scheduler", "step", "best", "config")
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError)

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of a training in its folder; what writes is for the main process only.

    A file is there as a whole or not at all: it is written under a temporary name and moved into place, and older ones
    go after that.

    Args:
        folder: of the training.
        keep_last: number of numbered checkpoints to keep.
    """

    def __init__(self, folder: Path, keep_last: int) -> None:
        self.folder, self.keep_last = folder, keep_last

    def numbered(self) -> dict[int, Path]:
        """The checkpoints `checkpoint_<step>.pth` by their steps, ascending."""
        found = ((re.fullmatch(r"checkpoint_(\d+)\.pth", path.name), path) for path in self.folder.glob(PATTERN))
        return dict(sorted((int(match[1]), path) for match, path in found if match))

    def save(self, state: dict[str, Any]) -> None:
        """Write the checkpoint of `state["step"]`, then delete those before the last `keep_last`."""
        step = state["step"]
        self._write(state, self.folder / f"checkpoint_{step:07d}.pth")
        # later ones are of no use: they could not be read when the training went on
        for number, path in self.numbered().items():
            if number > step:
                path.unlink()
        for path in [*self.numbered().values()][: -self.keep_last]:
            path.unlink()

    def save_best(self, state: dict[str, Any]) -> None:
        """Write `checkpoint_best.pth`."""
        self._write(state, self.folder / BEST)

    def finish(self) -> None:
        """Make the last numbered checkpoint the final one, and delete the others: the training is over."""
        *others, last = self.numbered().values()
        for path in others:
            path.unlink()
        last.replace(self.folder / FINAL)

    def is_finished(self) -> bool:
        """Whether there is a final checkpoint."""
        return (self.folder / FINAL).is_file()

    def load_last(self) -> dict[str, Any] | None:
        """Read the last checkpoint that can be read, on the CPU; None if there is none at all.

        Raises:
            ExperimentError: there are some, but none can be read.
        """
        failures = []
        for path in reversed(self.numbered().values()):
            try:
                return _read(path)
            except UNREADABLE as error:
                failures.append(f"{path.name}: {in_one_line(error)}")
                logger.warning("%s cannot be read and is left out (%s)", path, in_one_line(error))
        if failures:
            raise ExperimentError(
                f"no checkpoint in {self.folder} can be read ({'; '.join(failures)}): delete them to start again"
            )
        return None

    def _write(self, state: dict[str, Any], path: Path) -> None:
        try:
            with replace_when_complete(path) as temporary:
                torch.save(state, temporary)
        except (OSError, RuntimeError) as error:  # torch's own for a full disk
            raise ExperimentError(
                f"{path} cannot be written ({in_one_line(error)}); the checkpoints before it are unchanged"
            ) from error


def _read(path: Path) -> dict[str, Any]:
    state = torch.load(path, map_location="cpu", weights_only=True)
    missing = [key for key in CONTENT if key not in state]
    if missing:
        raise ValueError(f"no {', '.join(missing)} in the file")
    return state
