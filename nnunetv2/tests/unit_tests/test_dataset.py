"""What a training finds on disk: the fold in the split, also where a kill left half a file."""

import json
from pathlib import Path

import pytest

from nnunetv2.experiment.dataset import check_fold, read_dataset_json
from nnunetv2.experiment.errors import ExperimentError

SPLITS = json.dumps([{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}], indent=4)


def test_the_folds_are_those_of_the_split_and_five_without_one(tmp_path: Path):
    assert check_fold(tmp_path, "4") == 4 and check_fold(tmp_path, "all") == "all"
    (tmp_path / "splits_final.json").write_text(SPLITS)
    assert check_fold(tmp_path, "1") == 1
    with pytest.raises(ExperimentError, match="fold '2' is not in the split.*allowed: all, 0 to 1"):
        check_fold(tmp_path, "2")


@pytest.mark.parametrize("length", [0, 1, len(SPLITS) // 2])
def test_half_a_split_is_named_with_the_way_out(tmp_path: Path, length: int):
    (tmp_path / "splits_final.json").write_text(SPLITS[:length])
    with pytest.raises(ExperimentError, match=r"splits_final\.json is not a valid JSON.*delete it") as caught:
        check_fold(tmp_path, "0")
    assert len(str(caught.value).splitlines()) == 1
    assert check_fold(tmp_path, "all") == "all"  # needs no split


def test_half_a_dataset_json_is_named(tmp_path: Path):
    (tmp_path / "dataset.json").write_text('{"labels": ')
    with pytest.raises(ExperimentError, match=r"dataset\.json is not a valid JSON file"):
        read_dataset_json(tmp_path)
