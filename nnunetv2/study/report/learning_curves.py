"""Learning curves, read from nnU-Net's training logs."""

from pathlib import Path

import pandas as pd

from nnunetv2.study.training_log import CURVES, read_logs

COLUMNS = list(CURVES.values())


def learning_curve(fold_folder: Path) -> pd.DataFrame:
    """Return losses and mean pseudo Dice by epoch; epochs that were repeated after a resume count as they ran last.

    Args:
        fold_folder: with the logs `training_log_*.txt`, one per start of the training.

    Returns:
        A row per epoch; the columns are `COLUMNS`. Empty without a log.
    """
    epochs: dict[int, dict[str, float]] = {}
    for log in read_logs(fold_folder):
        for epoch, values in log.values.items():
            epochs.setdefault(epoch, {}).update(values)
    return pd.DataFrame.from_dict(epochs, orient="index", columns=COLUMNS).sort_index()
