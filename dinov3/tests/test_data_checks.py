"""Checking images and labels before a training."""

import json
import logging
import os
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from dinov3.data import checked_files
from dinov3.data.checks import check_pairs
from dinov3.data.loaders import find_pairs
from dinov3.data.pairs import ImagePair
from dinov3.errors import ExperimentError
from dinov3.eval.segmentation.config import DatasetConfig

LABELS = np.array([[0, 1, 2, 3], [255, 0, 1, 2]], np.uint8)


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in "abcd":
        save(tmp_path / f"images/train/{name}.png", np.full((2, 4, 3), ord(name), np.uint8))
        save(tmp_path / f"labels/train/{name}.png", LABELS)
    save(tmp_path / "images/val/v.png", LABELS)
    save(tmp_path / "labels/val/v.png", LABELS)
    return tmp_path


def pairs_in(root: Path) -> list[ImagePair]:
    return find_pairs(DatasetConfig(root=str(root)), 0)[0]


def check(root: Path, num_classes: int = 4, reduce: bool = False, memory: Path | None = None, **values: Any) -> str:
    """Names of the pairs that are left."""
    datasets = DatasetConfig(root=str(root), **values)
    usable = check_pairs(pairs_in(root), num_classes, reduce, datasets, 2, "training", memory)
    return "".join(pair.name for pair in usable)


def damage(root: Path) -> None:
    """One good image is left, c."""
    (root / "images/train/a.png").write_bytes(b"\x89PNG no more")
    save(root / "labels/train/b.png", LABELS[:, :3])
    save(root / "labels/train/d.png", LABELS + 7)


def test_what_is_right_stays(root: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        assert check(root) == "abcd"
        assert check(root, num_classes=3, reduce=True) == "abcd", "0 is unlabelled: the classes are 1, 2, 3"
    assert not caplog.messages


def test_every_kind_of_problem_is_named_and_counted(root: Path):
    damage(root)
    with pytest.raises(ExperimentError) as error:
        check(root)
    message = str(error.value)
    assert "found 3 training images (a: the image " in message and ") of 4; datasets.on_error=skip" in message
    assert "a.png cannot be read: UnidentifiedImageError" in message
    assert "b: the image is 2 x 4 and the labels are 2 x 3 pixels" in message
    assert "d: the labels must be 0 to 3, or 255 for ignored pixels, found 6, 7, 8, 9, 10" in message
    assert "\n" not in message


def test_skipping_leaves_the_others_and_warns(root: Path, caplog: pytest.LogCaptureFixture):
    damage(root)
    with caplog.at_level(logging.WARNING):
        assert check(root, on_error="skip") == "c"
    (message,) = caplog.messages
    assert message.startswith("left out 3 training images (a: the image ") and message.endswith(") of 4")


def test_skipping_all_is_an_error(root: Path):
    with pytest.raises(ExperimentError, match=r"found 4 training images \(a: .*found 2, 3, b: .*\) of 4$"):
        check(root, num_classes=2, on_error="skip")


def test_many_problems_are_counted_and_the_first_are_named(root: Path):
    for number in range(20):
        save(root / f"images/train/x{number:02d}.png", LABELS)
        save(root / f"labels/train/x{number:02d}.png", LABELS + 100)
    with pytest.raises(ExperimentError, match=r"found 20 training images \(x00: .*, x09: .*, and 10 more\) of 24"):
        check(root)


def test_classes_without_a_pixel_are_told(root: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        assert check(root, num_classes=6, reduce=True) == "abcd"
    assert caplog.messages == [
        "no training image has pixels with the labels 4, 5, 6; label 0 counts as unlabelled (eval.reduce_zero_label)"
    ]


def test_unchanged_files_are_not_read_again(root: Path):
    memory = root / "run" / "checked.json"
    with mock.patch.object(checked_files, "read_image", wraps=checked_files.read_image) as read:
        assert check(root, memory=memory) == "abcd" and read.call_count == 4
        assert check(root, memory=memory) == "abcd" and read.call_count == 4
        with pytest.raises(ExperimentError, match="must be 0 to 1"):
            check(root, num_classes=2, memory=memory)
        assert read.call_count == 4, "other classes need no reading"
        image = root / "images/train/b.png"
        os.utime(image, ns=(0, image.stat().st_mtime_ns + 1))
        save(root / "labels/train/c.png", LABELS.repeat(2, axis=1))
        with pytest.raises(ExperimentError, match=r"found 1 training image \(c: the image is 2 x 4"):
            check(root, memory=memory)
        assert read.call_count == 6
        check(root, memory=memory, on_error="skip", max_value=9.0)
        assert read.call_count == 10
    memory.write_text("{damaged")
    assert check(root, memory=memory, on_error="skip") == "abd"
    assert len(json.loads(memory.read_text())) == 4


def test_unreadable_files_are_tried_again(root: Path):
    memory = root / "checked.json"
    image = root / "images/train/a.png"
    good = image.read_bytes()
    image.write_bytes(good[:50])
    assert check(root, memory=memory, on_error="skip") == "bcd"
    image.write_bytes(good)
    assert check(root, memory=memory) == "abcd"
