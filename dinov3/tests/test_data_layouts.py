"""Finding the pairs of images and labels in folders."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dinov3.data.loaders import find_pairs, find_validation_pairs
from dinov3.data.pairs import ImagePair
from dinov3.errors import ExperimentError


def touch(root: Path, *files: str) -> Path:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def settings(root: Path, **values: Any) -> Any:
    return SimpleNamespace(**{"root": str(root), "train": "", "val": "", "val_share": 0.2, **values})


def names(root: Path, seed: int = 0, **values: Any) -> list[list[str]]:
    return [[pair.name for pair in pairs] for pairs in find_pairs(settings(root, **values), seed)]


def flat(root: Path, *stems: str) -> Path:
    return touch(root, *(f"images/{stem}.jpg" for stem in stems), *(f"labels/{stem}.png" for stem in stems))


def both(root: Path, images: str, labels: str) -> Path:
    return touch(root, f"{images}/a.jpg", f"{images}/b.jpg", f"{labels}/a.png", f"{labels}/b.png")


def test_ade20k(tmp_path: Path):
    base = tmp_path / "ADEChallengeData2016"
    both(base, "images/training", "annotations/training")
    touch(base, "images/validation/v.jpg", "annotations/validation/v.png", "objectInfo150.txt")
    for root in (tmp_path, base):
        assert names(root) == names(root, train="ADE20K:split=TRAIN", val="ADE20K:split=VAL") == [["a", "b"], ["v"]]
    (pair,) = find_validation_pairs(settings(tmp_path), 0)
    assert pair == ImagePair("v", base / "images/validation/v.jpg", base / "annotations/validation/v.png")


def test_cityscapes_prefers_the_training_ids(tmp_path: Path):
    for split, city, frame in (("train", "aachen", 0), ("train", "bochum", 0), ("val", "ulm", 1)):
        image, labels = f"leftImg8bit/{split}/{city}/{city}_{frame}", f"gtFine/{split}/{city}/{city}_{frame}"
        touch(tmp_path, f"{image}_leftImg8bit.png", *(f"{labels}_gtFine_{kind}.png" for kind in ("color", "labelIds")))
        touch(tmp_path, f"{labels}_gtFine_polygons.json")
    assert names(tmp_path) == [["aachen/aachen_0", "bochum/bochum_0"], ["ulm/ulm_1"]]
    (pair,) = find_validation_pairs(settings(tmp_path), 0)
    assert pair.labels.name == "ulm_1_gtFine_labelIds.png"
    touch(tmp_path, "gtFine/val/ulm/ulm_1_gtFine_labelTrainIds.png")
    (pair,) = find_validation_pairs(settings(tmp_path, val="CITYSCAPES:split=VAL"), 0)
    assert pair.labels.name == "ulm_1_gtFine_labelTrainIds.png"


def test_folders_of_parts(tmp_path: Path):
    both(both(tmp_path, "images/train", "labels/train"), "images/val", "labels/val")
    touch(tmp_path, "images/train/c.TIFF", "labels/train/c.TIF")
    assert names(tmp_path) == [["a", "b", "c"], ["a", "b"]]
    assert names(tmp_path, val="FOLDER:split=TRAIN") == [["a", "b", "c"]] * 2


@pytest.mark.parametrize(
    ("images", "labels", "train", "val"),
    [
        ("images", "labels", "training", "validation"),
        ("Images", "Labels", "Train", "VAL"),
        ("images", "LABELS", "train", "validation"),
    ],
)
def test_other_names_of_folders(tmp_path: Path, images: str, labels: str, train: str, val: str):
    both(tmp_path, f"{images}/{train}", f"{labels}/{train}")
    touch(tmp_path, f"{images}/{val}/v.jpg", f"{labels}/{val}/v.png")
    assert names(tmp_path) == names(tmp_path, train="FOLDER:split=TRAIN") == [["a", "b"], ["v"]]


def test_images_and_labels_may_name_the_parts_differently(tmp_path: Path):
    both(both(tmp_path, "images/train", "labels/Training"), "images/val", "labels/validation")
    assert names(tmp_path) == [["a", "b"], ["a", "b"]]


def test_capitalised_folders_without_parts(tmp_path: Path):
    both(tmp_path, "Images", "Labels")
    assert sorted(name for part in names(tmp_path) for name in part) == ["a", "b"]


def test_hidden_and_other_files_are_no_images(tmp_path: Path):
    both(both(tmp_path, "images/train", "labels/train"), "images/val", "labels/val")
    touch(tmp_path, "images/train/.DS_Store", "images/train/._a.jpg", "images/val/Thumbs.db", "labels/val/notes.txt")
    assert names(tmp_path) == [["a", "b"], ["a", "b"]]


def test_lists_of_names_with_or_without_the_suffix_and_a_byte_order_mark(tmp_path: Path):
    flat(tmp_path, "a", "b", "c.1", "d")
    (tmp_path / "train.txt").write_text("c.1\n\na.jpg\n", encoding="utf-8-sig")
    (tmp_path / "val.txt").write_bytes(b"b.jpg\r\n")
    assert names(tmp_path) == [["a", "c.1"], ["b"]]


def test_a_drawn_split_has_every_image_once_and_depends_on_the_seed_alone(tmp_path: Path):
    stems = [f"{number:02d}" for number in range(20)]
    flat(tmp_path, *stems)
    train, val = names(tmp_path, val_share=0.3)
    assert len(val) == 6 and sorted(train + val) == stems and train == sorted(train)
    assert names(tmp_path, val_share=0.3) == [train, val] != names(tmp_path, seed=1, val_share=0.3)
    assert [len(part) for part in names(tmp_path, val_share=0.99)] == [1, 19]
    assert [len(part) for part in names(tmp_path, val_share=0.01)] == [19, 1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": "ADE:split=TRAIN"}, "datasets.train must be one of ADE20K:split=TRAIN, .* found 'ADE:split=TRAIN'"),
        ({"val": "ADE20K:split=TEST"}, "datasets.val must be one of .* found 'ADE20K:split=TEST'"),
        ({"root": "/nowhere"}, "datasets.root must be a folder, found /nowhere"),
        ({"train": "CITYSCAPES:split=TRAIN"}, "leftImg8bit/train|gtFine/train"),
    ],
)
def test_wrong_settings_are_told(tmp_path: Path, values: dict[str, Any], message: str):
    root = flat(tmp_path, "a", "b", "c")
    with pytest.raises(ExperimentError, match=message):
        find_pairs(settings(**{"root": root, **values}), 0)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], r"no data set was recognised .* ADE20K: .*; CITYSCAPES: .*; FOLDER: .*; found no subfolders"),
        (["images/a.gif", "labels/a.png"], r"there are no images in .*images: looked for \.png, \.jpg"),
        (["images/a.png", "labels/a.jpg"], r"found 1 image \(a\) in .*images without labels"),
        (["images/a.png", "labels/a.png"], "a training and a validation image are needed, found only .*a.png"),
        (["images/a.png", "labels/b.png"], r"1 image \(a\) .* and 1 label file \(b\) in .*labels without an image"),
        ([f"images/{name}.png" for name in "abcdefgh"] + ["labels/a.png"], r"7 images \(b, c, d, e, f, and 2 more\)"),
        (["images/a.png", "images/a.JPG", "labels/a.png"], r"several files for 1 name \(a\)"),
        (
            ["images/a.jpg", "labels/a.jpg"],
            r"JPEG and WebP files are not read as labels, .* found 1 file \(a.jpg\): .*png",
        ),
        (
            ["images/train/a.png", "images/test/b.png", "labels/train/a.png"],
            r"images must have the subfolders train \(or training\) and val \(or .* 2 subfolders \(test, train\)$",
        ),
        (["images/train/a.png", "images/val/b.png"], r"labels must have the subfolders train .*, found no subfolders$"),
        (
            ["images/p1/a.png", "labels/p1/a.png"],
            r"or in their subfolders train .* found no .* 1 subfolder \(p1\) in .*images$",
        ),
        (["images/a.png", "labels/p1/a.png"], r"or in their subfolders train .* 1 subfolder \(p1\) in .*labels$"),
        (
            ["images/train/p1/a.png", "labels/train/p1/a.png", "images/val/b.png"],
            r"subfolder \(p1\) in .*images/train$",
        ),
        (["images/train/a.png", "images/Training/b.png"], "images may be named train or training, found 2$"),
        (["images/train/a.png", "labels/train/a.png", "images/val/x.txt", "labels/val/a.png"], "no images in .*val"),
    ],
)
def test_what_does_not_fit_together_is_told(tmp_path: Path, files: list[str], message: str):
    touch(tmp_path, *files)
    for folder in ("images", "labels") if files else ():
        (tmp_path / folder).mkdir(exist_ok=True)
    with pytest.raises(ExperimentError, match=message):
        find_pairs(settings(tmp_path), 0)


def test_other_folders_are_listed(tmp_path: Path):
    touch(tmp_path, "images/a.png", "masks/a.png", ".git/x")
    with pytest.raises(ExperimentError, match=r"no data set was recognised .*; found 2 subfolders \(images, masks\)$"):
        find_pairs(settings(tmp_path), 0)
    with pytest.raises(ExperimentError, match=r"must have the subfolders images and labels, found 2 subfolders \(im"):
        find_pairs(settings(tmp_path, train="FOLDER:split=TRAIN"), 0)


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ("a\nb", "b\nc", r"train.txt and .*val.txt must not share images, found 1 name \(b\)"),
        ("a", "b\nx", r"val.txt must list images, one per line, found 1 name \(x\) that is not there$"),
        ("y\nz", "b", r"train.txt must list images, one per line, found 2 names \(y, z\) that are not there$"),
        ("a", "\n", "val.txt lists no image"),
        ("a", None, r"train.txt and val.txt are both needed, found .*train.txt but no val.txt$"),
        (None, "a", r"train.txt and val.txt are both needed, found .*val.txt but no train.txt$"),
        ("a", "\udcff", "the list of images .*val.txt cannot be read"),
    ],
)
def test_wrong_lists_are_refused(tmp_path: Path, train: str | None, val: str | None, message: str):
    flat(tmp_path, "a", "b", "c")
    for name, text in (("train.txt", train), ("val.txt", val)):
        if text is not None:
            (tmp_path / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ExperimentError, match=message):
        find_pairs(settings(tmp_path), 0)
