"""Train the tiny model shortly on the real data sets, predict their held-out images, and print the Dice.

usage: python benchmarks/real_data.py RAW_FOLDER OUTPUT_FOLDER [ID ...]

RAW_FOLDER is nnU-Net's raw folder with the data sets 101, 102, 103, 111 and 113. OUTPUT_FOLDER gets plans, results,
predictions and one picture per data set.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "demo"))

from commands import environment, paint, run, write_sheet  # noqa: E402

PLANS, TILE_SIDE, SHOWN_CASES = "nnUNetPlans_upernet_tiny", 384, 2


class Study(NamedTuple):
    """A data set, where its held-out images and labels lie, and what a short run changes in the configuration."""

    dataset: str
    images: str
    labels: str
    overrides: tuple[str, ...]


PHOTOGRAPHS = ("train.patch_size=[384,384]", "train.batch_size=2")
SLICES = ("train.batch_size=16",)
STUDIES = {
    101: Study("Dataset101_LESAV", "Dataset101_LESAV/imagesTs", "Dataset101_LESAV/labelsTs", PHOTOGRAPHS),
    102: Study(
        "Dataset102_NucleiDSB2018",
        "Dataset102_NucleiDSB2018/imagesTs",
        "Dataset102_NucleiDSB2018/labelsTs",
        ("train.patch_size=[256,256]", "train.batch_size=4"),
    ),
    103: Study("Dataset103_Hippocampus", "Dataset103_Hippocampus/imagesTs", "Dataset103_Hippocampus/labelsTs", SLICES),
    111: Study("Dataset111_LESAV_AV", "Dataset101_LESAV/imagesTs", "Dataset101_LESAV/labelsTs_av", PHOTOGRAPHS),
    113: Study(
        "Dataset113_HippocampusRegions", "Dataset103_Hippocampus/imagesTs", "Dataset103_Hippocampus/labelsTs", SLICES
    ),
}


def read_plane(path: Path) -> np.ndarray:
    """Read an image (H, W[, 3]), or the middle slice of a volume."""
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    return array[len(array) // 2] if path.name.endswith(".nii.gz") else array


def as_picture(plane: np.ndarray) -> Image.Image:
    """Stretch the range of values of a plane to that of a picture."""
    low, high = float(plane.min()), float(plane.max())
    return Image.fromarray(((plane - low) / max(high - low, 1e-6) * 255).astype(np.uint8))


def draw(images: Path, truth: Path, predictions: Path, path: Path) -> None:
    """Write one row per case: image | truth | prediction."""
    rows = []
    for label in sorted(truth.iterdir())[:SHOWN_CASES]:
        ending = "".join(label.suffixes)
        image = images / label.name.replace(ending, f"_0000{ending}")
        planes = [paint(read_plane(folder / label.name)) for folder in (truth, predictions)]
        rows.append([as_picture(read_plane(image)), *planes])
    write_sheet(rows, ("image", "truth", "prediction"), TILE_SIDE, path)


def conduct(number: int, raw: Path, output: Path) -> dict[str, float]:
    """Plan, train, predict and evaluate one data set; return the mean Dice per class or region."""
    study = STUDIES[number]
    execute = partial(run, environment(output, raw))
    predictions = output / "predictions" / study.dataset
    if not (output / "preprocessed" / study.dataset / "nnUNetPlans_2d").is_dir():
        execute("nnUNetv2_plan_and_preprocess", "-d", number, "-c", "2d", "-npfp", 2, "-np", 2)
    config = HERE / "upernet_tiny.yaml"
    execute("nnUNetv2_train_vit", number, "2d", 0, "--config", config, "-device", "cpu", *study.overrides)
    trained = ("-d", number, "-c", "2d", "-f", 0, "-tr", "nnUNetTrainer_vit", "-p", PLANS)
    execute(
        "nnUNetv2_predict", "-i", raw / study.images, "-o", predictions, *trained, "-device", "cpu", "--disable_tta"
    )
    files = ("-djfile", predictions / "dataset.json", "-pfile", predictions / "plans.json")
    execute("nnUNetv2_evaluate_folder", raw / study.labels, predictions, *files)
    draw(raw / study.images, raw / study.labels, predictions, output / f"{study.dataset}.png")
    measured = json.loads((predictions / "summary.json").read_text())["mean"]
    return {label: values["Dice"] for label, values in measured.items()}


def main() -> None:
    """Conduct the studies asked for and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("ids", type=int, nargs="*", default=list(STUDIES), metavar="ID")
    args = parser.parse_args()
    results = {number: conduct(number, args.raw.resolve(), args.output.resolve()) for number in args.ids}
    print("\nDice on the held-out images, per class or region")
    for number, dice in results.items():
        print(f"{STUDIES[number].dataset:<30} " + "  ".join(f"{label}: {value:.3f}" for label, value in dice.items()))


if __name__ == "__main__":
    main()
