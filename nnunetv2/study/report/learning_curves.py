"""Learning curves, read from nnU-Net's training logs: every trainer writes them, and a checkpoint is large."""

import re
from pathlib import Path

import pandas as pd

from nnunetv2.study.progress import training_logs

COLUMNS = {"train_loss": "training loss", "val_loss": "validation loss", "Pseudo dice": "pseudo Dice"}
_EPOCH = re.compile(r"^\S+ \S+: Epoch (\d+)\s*$")
_VALUE = re.compile(r"^\S+ \S+: (train_loss|val_loss|Pseudo dice) (.+)$")
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf)")


def learning_curve(fold_folder: Path) -> pd.DataFrame:
    """Return losses and mean pseudo Dice by epoch; epochs that were repeated after a resume count as they ran last.

    Args:
        fold_folder: with the logs `training_log_*.txt`, one per start of the training.

    Returns:
        A row per epoch; the columns are the values of `COLUMNS`. Empty without a log.
    """
    epochs: dict[int, dict[str, float]] = {}
    for log in training_logs(fold_folder):
        epoch = None
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            if found := _EPOCH.match(line):
                epoch = int(found[1])
            elif epoch is not None and (found := _VALUE.match(line)):
                numbers = [float(number) for number in _NUMBER.findall(found[2])]
                values = [number for number in numbers if number == number]  # a class that no patch had is NaN
                if values:
                    epochs.setdefault(epoch, {})[COLUMNS[found[1]]] = sum(values) / len(values)
    return pd.DataFrame.from_dict(epochs, orient="index", columns=list(COLUMNS.values())).sort_index()
