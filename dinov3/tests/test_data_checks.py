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
    """Make all images unusable but c."""
    (root / "images/train/a.png").write_bytes(b"\x89PNG no more")
    save(root / "labels/train/b.png", LABELS[:, :3])
    save(root / "labels/train/d.png", LABELS + 7)


def add_unusable(root: Path, number: int) -> None:
    for index in range(number):
        save(root / f"images/train/x{index:02d}.png", LABELS)
        save(root / f"labels/train/x{index:02d}.png", LABELS + 100)


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
    assert message.startswith("cannot use 3 of 4 training images (a: the image ")
    assert message.endswith("; datasets.on_error=skip leaves such images out and lists all of them")
    assert "a.png cannot be read: UnidentifiedImageError" in message
    assert "; b: the image is 2 x 4 and the labels are 2 x 3 pixels; d: the labels must be 0 to 3, or 255" in message
    assert " for ignored pixels, found 6, 7, 8, 9, 10)" in message
    assert "\n" not in message


def test_skipping_leaves_the_others_and_names_each_one_left_out(root: Path, caplog: pytest.LogCaptureFixture):
    damage(root)
    with caplog.at_level(logging.WARNING):
        assert check(root, on_error="skip") == "c"
    assert [message.split(": ")[0] for message in caplog.messages] == [
        "left out 3 of 4 training images (datasets.on_error=skip)",
        "left out a",
        "left out b",
        "left out d",
    ]
    assert caplog.messages[2] == "left out b: the image is 2 x 4 and the labels are 2 x 3 pixels"


def test_skipping_many_names_all_of_them(root: Path, caplog: pytest.LogCaptureFixture):
    add_unusable(root, 20)
    with caplog.at_level(logging.WARNING):
        assert check(root, on_error="skip") == "abcd"
    assert caplog.messages[0].startswith("left out 20 of 24 training images")
    assert [message.split(":")[0] for message in caplog.messages[1:]] == [f"left out x{i:02d}" for i in range(20)]


def test_skipping_all_is_an_error(root: Path):
    with pytest.raises(
        ExperimentError, match=r"cannot use 4 of 4 training images \(a: .*found 2, 3; b: .*; and 1 more\)$"
    ):
        check(root, num_classes=2, on_error="skip")


def test_many_problems_are_counted_and_the_first_are_named(root: Path):
    add_unusable(root, 20)
    with pytest.raises(ExperimentError, match=r"cannot use 20 of 24 training images \(x00: .*; x02: .*; and 17 more\)"):
        check(root)


@pytest.mark.parametrize(
    ("value", "reduce", "message"),
    [
        (255, False, r"the classes are the labels 0 to 3, found only 255$"),
        (0, True, r"the classes are the labels 1 to 4, found only 0; label 0 counts as unlabelled \(eval.reduce_zero"),
    ],
)
@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_labels_without_any_class_are_refused(root: Path, value: int, reduce: bool, message: str, on_error: str):
    for name in "abcd":
        save(root / f"labels/train/{name}.png", np.full_like(LABELS, value))
    with pytest.raises(ExperimentError, match=f"^no training image has a pixel of any class: {message}"):
        check(root, reduce=reduce, on_error=on_error)
    save(root / "labels/train/d.png", LABELS)
    assert check(root, reduce=reduce, on_error=on_error) == "abcd", "one image with a class is enough"


def test_classes_without_a_pixel_are_named(root: Path, caplog: pytest.LogCaptureFixture):
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
        with pytest.raises(ExperimentError, match=r"cannot use 1 of 4 training images \(c: the image is 2 x 4"):
            check(root, memory=memory)
        assert read.call_count == 6
        check(root, memory=memory, on_error="skip", max_value=9.0)
        assert read.call_count == 10
    entries = json.loads(memory.read_text())
    memory.write_text(json.dumps({name: {"stamp": [], "facts": {}} for name in entries}))
    assert check(root, memory=memory, on_error="skip") == "abd", "the file of an earlier version is replaced"
    assert json.loads(memory.read_text()).keys() == entries.keys()
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
