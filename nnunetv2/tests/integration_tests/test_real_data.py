"""The main job on a few cases of each real data set: photographs, microscopy, volumes read by slices, regions."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import SimpleITK as sitk

TRAINING_CASES = 5  # nnU-Net's five folds
PLANS = "nnUNetPlans_upernet_test_dinov3"


class Case(NamedTuple):
    number: int
    dataset: str
    images: str  # the data set whose images are read
    labels: str
    options: tuple[str, ...]
    input_norm: str
    heads: int  # output channels: classes, or regions


PHOTOGRAPHS = ("train.patch_size=[512,512]", "train.batch_size=1")
MICROSCOPY = ("train.patch_size=[200,264]",)
SLICES = ("train.batch_size=4",)
PASS = "none, channels pass"
CASES = [
    Case(101, "Dataset101_LESAV", "Dataset101_LESAV", "labelsTr", PHOTOGRAPHS, PASS, 2),
    Case(
        102,
        "Dataset102_NucleiDSB2018",
        "Dataset102_NucleiDSB2018",
        "labelsTr",
        ("train.patch_size=[200,264]",),
        PASS,
        2,
    ),
    Case(103, "Dataset103_Hippocampus", "Dataset103_Hippocampus", "labelsTr", SLICES, PASS, 3),
    Case(111, "Dataset111_LESAV_AV", "Dataset101_LESAV", "labelsTr_av", PHOTOGRAPHS, PASS, 4),
    Case(113, "Dataset113_HippocampusRegions", "Dataset103_Hippocampus", "labelsTr", SLICES, PASS, 2),
]
TINY = (
    "model.backbone_size=tiny",
    "model.pretrained=false",
    "model.decoder.hidden_size=32",
    "train.num_epochs=1",
    "train.num_iterations_per_epoch=2",
    "train.num_val_iterations_per_epoch=1",
    "train.precision=float32",
)


def subset(case: Case, real_data: Path, raw: Path) -> Path:
    """Write a data set of a few of the real cases, without copying them; return the folder of its test image."""
    source = real_data / case.images
    description = json.loads((real_data / case.dataset / "dataset.json").read_text())
    ending = description["file_ending"]
    names = sorted(path.name.removesuffix(ending) for path in (source / case.labels).iterdir())
    chosen = names[:: max(1, len(names) // TRAINING_CASES)][:TRAINING_CASES]  # of all image sizes
    description["numTraining"] = len(chosen)
    description["dataset"] = {
        name: {
            "images": [str(source / "imagesTr" / f"{name}_0000{ending}")],
            "label": str(source / case.labels / f"{name}{ending}"),
        }
        for name in chosen
    }
    test = raw / case.dataset / "test"
    test.mkdir(parents=True)
    (raw / case.dataset / "dataset.json").write_text(json.dumps(description))
    image = sorted((source / "imagesTs").iterdir())[0]
    (test / image.name).symlink_to(image)
    return test


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.dataset)
def test_train_and_predict(case: Case, real_data: Path, make_workplace):
    place = make_workplace(case.dataset)
    test = subset(case, real_data, place.raw)
    place.plan(str(case.number))
    train = ("nnUNetv2_train_vit", case.number, "2d", 0, "--config", "upernet_test_dinov3", "-device", "cpu")
    place.run(*train, *TINY, *case.options)
    model = (
        "-d",
        case.number,
        "-c",
        "2d",
        "-f",
        0,
        "-tr",
        "nnUNetTrainer_vit",
        "-p",
        "nnUNetPlans_upernet_test_dinov3",
    )
    output = place.root / "predicted"
    options = ("-device", "cpu", "--disable_tta", "--save_probabilities", "-npp", 1, "-nps", 1)
    place.run("nnUNetv2_predict", "-i", test, "-o", output, *model, *options)

    image = sitk.ReadImage(str(next(test.iterdir())))
    (path,) = (p for p in output.iterdir() if p.name.endswith((".png", ".nii.gz")))
    predicted = sitk.ReadImage(str(path))
    assert predicted.GetSize() == image.GetSize()
    assert set(np.unique(sitk.GetArrayFromImage(predicted))) <= set(range(4 if case.number == 111 else 3))
    probabilities = np.load(next(output.glob("*.npz")))["probabilities"]
    assert len(probabilities) == case.heads and np.isfinite(probabilities).all()
    if case.number != 113:  # regions overlap, so that theirs need not sum to one
        assert np.allclose(probabilities.sum(0), 1, atol=1e-3)
    results = place.results / case.dataset / f"nnUNetTrainer_vit__{PLANS}__2d" / "fold_0"
    assert json.loads((results / "validation" / "summary.json").read_text())["foreground_mean"]
    assert case.input_norm in next(results.glob("training_log_*.txt")).read_text()
