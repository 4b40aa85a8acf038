"""Checkpoint files of a fold: each is written in one piece, and the one to resume from is never older than the best."""

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from nnunetv2.training.experiment.errors import ExperimentError


def write_checkpoint(path: Path, write: Callable[[str], None]) -> None:
    """Write a checkpoint to a temporary name and move it into place: a kill never leaves half a file.

    Args:
        path: of the checkpoint.
        write: writes it to the path that it is given.

    Raises:
        ExperimentError: it cannot be written, such as on a full disk; the one that was there is as it was.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        write(str(temporary))
        os.replace(temporary, path)
        if path.name == "checkpoint_best.pth":
            _resume_from(path)
    except (OSError, RuntimeError) as error:  # PyTorch's writer raises the latter
        free = shutil.disk_usage(path.parent).free / 2**20
        reason = f"{str(error).splitlines()[0]} ({free:.0f} MiB are free on the disk)"
        raise ExperimentError(f"cannot write {path}, what was there is as it was: {reason}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _resume_from(path: Path) -> None:
    # nnU-Net resumes from checkpoint_latest even where checkpoint_best is newer. A second name costs no space.
    latest = path.with_name("checkpoint_latest.pth")
    link = Path(f"{latest}.tmp")
    link.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # a file system without hard links: latest stays older than best
        os.link(path, link)
        os.replace(link, latest)


def remove_partial_checkpoints(folder: Path) -> None:
    """Remove the temporary files that a kill left behind."""
    for left_by_a_kill in folder.glob("checkpoint_*.pth.tmp"):
        left_by_a_kill.unlink()
