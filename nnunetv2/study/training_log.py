"""nnU-Net's training logs: every trainer writes them, and a checkpoint is large."""

import functools
import re
from dataclasses import dataclass
from pathlib import Path

# as nnU-Net's logs call them -> as a report does
CURVES = {"train_loss": "training loss", "val_loss": "validation loss", "Pseudo dice": "pseudo Dice"}
_DIGITS = re.compile(r"\d+")
_NUM_EPOCHS = re.compile(r"Epochs: (\d+)")
_SECONDS = re.compile(r"Epoch time: ([\d.]+) s")
_TRAINING_CASES = re.compile(r"This split has (\d+) training and|Training on (\d+) of \d+ training cases")
_EPOCH_OR_VALUE = re.compile(rf"^\S+ \S+: (?:Epoch (\d+)\s*$|({'|'.join(CURVES)}) (.+)$)", re.MULTILINE)
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|inf)")  # not the one in `np.float32(0.5)`'s type


@dataclass(frozen=True)
class TrainingLog:
    """What one log, that of a single start of a training, tells.

    Attributes:
        num_epochs: of the training; None: it is not told.
        first_epoch: that the start began with; None: none has begun.
        epoch_seconds: duration of every epoch that ended.
        values: by epoch, those of `CURVES` that are known; of several classes their mean.
        num_training_cases: None: it is not told.
    """

    num_epochs: int | None
    first_epoch: int | None
    epoch_seconds: tuple[float, ...]
    values: dict[int, dict[str, float]]
    num_training_cases: int | None


def training_logs(fold_folder: Path) -> list[Path]:
    """The logs of a fold, one per start of its training, in the order of their dates, which nnU-Net does not pad."""
    return sorted(
        fold_folder.glob("training_log_*.txt"), key=lambda path: [int(number) for number in _DIGITS.findall(path.name)]
    )


def read_logs(fold_folder: Path) -> list[TrainingLog]:
    """Read the logs of a fold, one per start of its training."""
    return [_read(path, path.stat().st_size) for path in training_logs(fold_folder)]


@functools.lru_cache(maxsize=4096)
def _read(path: Path, _size: int) -> TrainingLog:
    """Read a log; again when it has grown."""
    text = path.read_text(encoding="utf-8", errors="replace")
    num_epochs = _NUM_EPOCHS.findall(text)
    starts, values = _values(text)
    cases = [int(first or second) for first, second in _TRAINING_CASES.findall(text)]
    return TrainingLog(
        num_epochs=int(num_epochs[-1]) if num_epochs else None,
        first_epoch=starts[0] if starts else None,
        epoch_seconds=tuple(float(seconds) for seconds in _SECONDS.findall(text)),
        values=values,
        num_training_cases=cases[-1] if cases else None,  # a subset is told after the split
    )


def _values(text: str) -> tuple[list[int], dict[int, dict[str, float]]]:
    """Return the epochs that began, and the values of those that have some."""
    starts: list[int] = []
    values: dict[int, dict[str, float]] = {}
    for epoch, name, content in _EPOCH_OR_VALUE.findall(text):
        if epoch:
            starts.append(int(epoch))
        elif starts:
            numbers = [float(number) for number in _NUMBER.findall(content)]  # a class that no patch had is nan
            if numbers:
                values.setdefault(starts[-1], {})[CURVES[name]] = sum(numbers) / len(numbers)
    return starts, values
