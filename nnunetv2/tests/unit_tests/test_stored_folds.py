"""Folds that were trained and stored before load and predict as they did then."""

import json

import numpy as np
import pytest
from stored_folds import FOLDER, FOLDS, MAX_BYTES, predict


def test_every_fold_is_stored_and_small():
    assert {path.name for path in FOLDER.iterdir() if path.is_dir()} >= FOLDS.keys()
    for folder in filter(lambda path: path.is_dir(), FOLDER.iterdir()):
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= MAX_BYTES, folder.name


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.iterdir() if path.is_dir()))
def test_a_stored_fold_predicts_the_same(name: str):
    stored = np.load(FOLDER / name / "probabilities.npy").astype(np.float32)
    predicted = predict(FOLDER / name)
    assert predicted.shape == stored.shape and np.abs(predicted - stored).max() < 2e-3
    # a network that takes no notice of its input or of its weights would not be seen otherwise
    assert stored.std(axis=(1, 2)).max() > 1e-2
    plans = json.loads((FOLDER / name / "plans.json").read_text())
    assert plans["plans_name"].endswith(name)
