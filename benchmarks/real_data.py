"""Train decoders on a tiny ViT from random weights, shortly and on a CPU, and compare them on held-out real images.

usage: python benchmarks/real_data.py RAW_FOLDER OUTPUT_FOLDER [--datasets ID ...] [--decoders NAME ...]

RAW_FOLDER is nnU-Net's raw folder with the data sets 101, 102, 103, 111 and 113. NAME is a packaged configuration; its
decoder is narrowed as in `overfit.py` and `overfit_m2f.py`, and backbone and decoder train from random weights: all by
the same recipe, for 250 steps. Masks of queries are compared at 2,048 points instead of 12,544. OUTPUT_FOLDER gets
plans, results, predictions and one picture per data set. What is there already, of an earlier call, is not trained
again.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from packaged_decoders import REDUCED, REDUCED_MASK_CLASSIFICATION, TINY
from PIL import Image

from nnunetv2.experiment.schema import find_config, read_values

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "demo"))

from commands import environment, paint, run, write_sheet  # noqa: E402

TILE_SIDE, SHOWN_CASES = 384, 2
TRAINING = (
    *("train.optimizer=adamw", "train.initial_lr=0.002", "train.weight_decay=0.01", "train.schedule=cosine"),
    *("train.warmup_epochs=1", "train.precision=float32", "train.seed=1"),
    *("train.num_epochs=5", "train.num_iterations_per_epoch=50", "train.num_val_iterations_per_epoch=5"),
)
# What else makes the recipes of networks with queries the same
QUERIES = ("gradient_clip=1", "train.backbone_lr_factor=1", "m2f_train.num_points=2048")
PER_EPOCH = ("train.schedule_interval=epoch", "train.warmup_fraction=null")
SETTINGS = {
    **{name: (*reduced, "train.gradient_clip=1") for name, reduced in REDUCED.items()},
    **{name: (*reduced, *QUERIES) for name, reduced in REDUCED_MASK_CLASSIFICATION.items()},
}
SETTINGS["eomt"] += (*PER_EPOCH, "train.backbone_warmup_fraction=null")
SETTINGS["pmt"] += PER_EPOCH
PHOTOGRAPHS = ("train.patch_size=[384,384]", "train.batch_size=2")
MICROSCOPY = ("train.patch_size=[256,256]", "train.batch_size=4")
SLICES = ("train.batch_size=16",)


class Source(NamedTuple):
    """A data set, where its held-out images and labels lie, and the patch and batch size of a short training."""

    dataset: str
    images: str
    labels: str
    overrides: tuple[str, ...]


LESAV, NUCLEI, HIPPOCAMPUS = "Dataset101_LESAV", "Dataset102_NucleiDSB2018", "Dataset103_Hippocampus"
SOURCES = {
    101: Source(LESAV, LESAV, "labelsTs", PHOTOGRAPHS),
    102: Source(NUCLEI, NUCLEI, "labelsTs", MICROSCOPY),
    103: Source(HIPPOCAMPUS, HIPPOCAMPUS, "labelsTs", SLICES),
    111: Source("Dataset111_LESAV_AV", LESAV, "labelsTs_av", PHOTOGRAPHS),
    113: Source("Dataset113_HippocampusRegions", HIPPOCAMPUS, "labelsTs", SLICES),
}


def read_plane(path: Path) -> np.ndarray:
    """Read an image (H, W[, 3]), or the middle slice of a volume."""
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    return array[len(array) // 2] if path.name.endswith(".nii.gz") else array


def as_picture(plane: np.ndarray) -> Image.Image:
    """Stretch the range of values of a plane to that of a picture."""
    low, high = float(plane.min()), float(plane.max())
    return Image.fromarray(((plane - low) / max(high - low, 1e-6) * 255).astype(np.uint8))


def draw(images: Path, truth: Path, predictions: dict[str, Path], path: Path) -> None:
    """Write one row per case: image | truth | the prediction of each decoder."""
    rows = []
    for label in sorted(truth.iterdir())[:SHOWN_CASES]:
        ending = "".join(label.suffixes)
        image = images / label.name.replace(ending, f"_0000{ending}")
        planes = [paint(read_plane(folder / label.name)) for folder in (truth, *predictions.values())]
        rows.append([as_picture(read_plane(image)), *planes])
    write_sheet(rows, ("image", "truth", *predictions), TILE_SIDE, path)


def plan(number: int, raw: Path, output: Path) -> None:
    """Plan and preprocess a data set, unless an earlier call did."""
    if not (output / "preprocessed" / SOURCES[number].dataset / "nnUNetPlans_2d").is_dir():
        options = ("-d", number, "-c", "2d", "-npfp", 2, "-np", 2)
        run(environment(output, raw), "nnUNetv2_plan_and_preprocess", *options)


def evaluate(number: int, decoder: str, raw: Path, output: Path) -> Path:
    """Train a decoder on a data set, predict its held-out images and compare with their labels.

    Returns:
        The folder of the predictions and of nnU-Net's `summary.json`.
    """
    source = SOURCES[number]
    predictions = output / "predictions" / source.dataset / decoder
    if (predictions / "summary.json").is_file():
        return predictions
    execute = partial(run, environment(output, raw))
    overrides = (*TINY, *TRAINING, *SETTINGS[decoder], *source.overrides)
    name = f"{decoder}_tiny"
    trainer = read_values(find_config(decoder))["trainer"]
    execute("nnUNetv2_train_vit", number, "2d", 0, "--config", decoder, "--name", name, "-device", "cpu", *overrides)
    trained = ("-d", number, "-c", "2d", "-f", 0, "-tr", trainer, "-p", f"nnUNetPlans_{name}")
    images = raw / source.images / "imagesTs"
    execute("nnUNetv2_predict", "-i", images, "-o", predictions, *trained, "-device", "cpu", "--disable_tta")
    files = ("-djfile", predictions / "dataset.json", "-pfile", predictions / "plans.json")
    execute("nnUNetv2_evaluate_folder", raw / source.images / source.labels, predictions, *files)
    return predictions


def dice_text(predictions: Path) -> str:
    """The mean Dice over the images, of each class or region, as nnU-Net measured it."""
    measured = json.loads((predictions / "summary.json").read_text())["mean"]
    return ", ".join(f"{values['Dice']:.3f}" for values in measured.values())


def main() -> None:
    """Train and evaluate what is asked for, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("raw", type=Path)
    add("output", type=Path)
    add("--datasets", type=int, nargs="+", choices=SOURCES, default=list(SOURCES), metavar="ID")
    add("--decoders", nargs="+", choices=SETTINGS, default=["upernet"], metavar="NAME")
    args = parser.parse_args()
    raw, output = args.raw.resolve(), args.output.resolve()
    found: dict[int, dict[str, Path]] = {}
    for number in args.datasets:
        plan(number, raw, output)
        found[number] = {decoder: evaluate(number, decoder, raw, output) for decoder in args.decoders}
        source = SOURCES[number]
        images, truth = raw / source.images / "imagesTs", raw / source.images / source.labels
        draw(images, truth, found[number], output / f"{source.dataset}.png")
    print("\nDice on the held-out images, per class or region\n")
    print("| decoder | " + " | ".join(SOURCES[number].dataset for number in found) + " |")
    print("| --- |" + " --- |" * len(found))
    for decoder in args.decoders:
        print(f"| `{decoder}` | " + " | ".join(dice_text(found[number][decoder]) for number in found) + " |")


if __name__ == "__main__":
    main()
