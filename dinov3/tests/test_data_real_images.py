"""Real images, written into the layouts and read back."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dinov3.data.checks import check_pairs
from dinov3.data.images import read_image, read_labels
from dinov3.data.loaders import find_pairs

SPLITS = ("TRAIN", "TRAIN", "VAL")  # of the images that are written


def paths_in(layout: str, split: str, name: str) -> tuple[str, str]:
    """Where a layout has an image and its labels."""
    if layout == "ADE20K":
        part = {"TRAIN": "training", "VAL": "validation"}[split]
        return f"images/{part}/{name}.png", f"annotations/{part}/{name}.png"
    part = split.lower()
    if layout == "CITYSCAPES":
        file = f"{part}/city/city_{name}"
        return f"leftImg8bit/{file}_leftImg8bit.png", f"gtFine/{file}_gtFine_labelTrainIds.png"
    return f"images/{part}/{name}.tif", f"labels/{part}/{name}.bmp"


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.mark.parametrize("layout", ["ADE20K", "CITYSCAPES", "FOLDER"])
@pytest.mark.parametrize("kind", ["fundus", "nuclei", "nuclei of 16 bits"])
def test_real_images_are_read_as_they_were_written(real_data: Path, tmp_path: Path, layout: str, kind: str):
    source = real_data / ("Dataset101_LESAV" if kind == "fundus" else "Dataset102_NucleiDSB2018")
    written: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    labels = sorted((source / "labelsTr").glob("*.png"))[: len(SPLITS)]
    for split, path in zip(SPLITS, labels, strict=True):
        channels = sorted((source / "imagesTr").glob(f"{path.stem}_*.png"))
        image = np.dstack([np.array(Image.open(channel)) for channel in channels]).squeeze()[:300, :400]
        written[path.stem] = image, np.array(Image.open(path))[:300, :400]
        for file, array in zip(paths_in(layout, split, path.stem), written[path.stem], strict=True):
            write(tmp_path / file, array.astype(np.uint16) * 257 if "16" in kind and array is image else array)
    config = SimpleNamespace(root=str(tmp_path), train="", val="", val_share=0.2, max_value=None, on_error="stop")
    training, validation = find_pairs(config, seed=0)
    assert [len(training), len(validation)] == [2, 1]
    assert check_pairs(training, 2, False, config, num_workers=2, title="training") == training
    for pair in (*training, *validation):
        image, labels_of_image = written[pair.name.removeprefix("city/city_")]
        found = read_image(pair.image).permute(1, 2, 0).numpy()
        colours = image if image.ndim == 3 else np.dstack([image] * 3)
        assert np.array_equal(np.round(found * 255) if "16" in kind else found, colours)
        assert np.array_equal(read_labels(pair.labels), labels_of_image) and labels_of_image.any()
