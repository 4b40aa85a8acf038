"""The main job on synthetic images: plan and preprocess → study of two decoders → predict → evaluate → report.

Every step but the fingerprint is a command of nnU-Net or of this project, run as a user would run it; the output goes
to demo/output.
"""

import json
import os
import shutil
from functools import partial
from pathlib import Path
from time import time

import numpy as np
from commands import environment, paint, run, write_sheet
from make_fundus import make_dataset
from PIL import Image

HERE = Path(__file__).resolve().parent
OUTPUT = HERE / "output"
STUDY = HERE / "study.yaml"
TRAINED = ("-tr", "nnUNetTrainer_vit", "-p", "nnUNetPlans_demo_unetr")  # of the study, for the test images
CLASSES = {1: "artery", 2: "vein"}
SHOWN_CASES, TILE_SIDE = 3, 384


def extract_fingerprint(number: int, variables: dict[str, str]) -> None:
    """Write the fingerprint that the planner finds: the command would draw a hundred million pixels of small images."""
    os.environ.update(variables)  # nnU-Net reads its folders when it is imported
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    extractor = DatasetFingerprintExtractor(number, num_processes=1)
    extractor.num_foreground_voxels_for_intensitystats = 10_000
    extractor.run()


def chance_dice(labels: list[np.ndarray], label: int) -> float:
    """Mean Dice of calling every pixel of an image `label`: the best that can be had without looking at the image.

    Args:
        labels: true labels, each (H, W).
        label: the class.
    """
    shares = [float((truth == label).mean()) for truth in labels]
    return float(np.mean([2 * share / (1 + share) for share in shares]))


def draw_cases(cases: list[str], images: Path, truth: Path, prediction: Path, path: Path) -> None:
    """Write one row per case: image | truth | prediction."""
    rows = [
        [
            Image.open(images / f"{case}_0000.png"),
            paint(np.asarray(Image.open(truth / f"{case}.png"))),
            paint(np.asarray(Image.open(prediction / f"{case}.png"))),
        ]
        for case in cases
    ]
    write_sheet(rows, ("image", "truth: artery red, vein blue", "prediction"), TILE_SIDE, path)


def report(summary: Path, truth: Path) -> None:
    """Print the measured Dice per class beside the chance level."""
    measured = json.loads(summary.read_text())["mean"]
    labels = [np.asarray(Image.open(path)) for path in sorted(truth.glob("*.png"))]
    print(f"\nDice on {len(labels)} test images; chance is the Dice of calling every pixel that class")
    print(f"{'class':<8} {'Dice':>6} {'chance':>7} {'margin':>7}")
    for label, name in CLASSES.items():
        dice, chance = measured[str(label)]["Dice"], chance_dice(labels, label)
        print(f"{name:<8} {dice:6.3f} {chance:7.3f} {dice - chance:+7.3f}")


def main() -> None:
    """Run the demonstration from the beginning."""
    start = time()
    shutil.rmtree(OUTPUT, ignore_errors=True)
    dataset = make_dataset(OUTPUT / "raw")
    number = int(dataset.name[7:10])
    truth, predictions, page = dataset / "labelsTs", OUTPUT / "predictions", OUTPUT / "report" / "report.html"
    variables = environment(OUTPUT, OUTPUT / "raw")
    execute = partial(run, variables)
    (OUTPUT / "preprocessed" / dataset.name).mkdir(parents=True)
    extract_fingerprint(number, variables)
    trained = ("-d", number, "-c", "2d", "-f", 0, *TRAINED)
    execute(
        "nnUNetv2_plan_and_preprocess", "-d", number, "-c", "2d", "--verify_dataset_integrity", "-npfp", 2, "-np", 2
    )
    execute("nnUNetv2_vit_study", "run", STUDY, "--workers", 2)
    # one process each reads and writes: six images are not worth the start of more
    few = ("-device", "cpu", "-npp", 1, "-nps", 1)
    execute("nnUNetv2_predict", "-i", dataset / "imagesTs", "-o", predictions, *trained, *few)
    files = ("-djfile", predictions / "dataset.json", "-pfile", predictions / "plans.json")
    execute("nnUNetv2_evaluate_folder", truth, predictions, *files)
    execute("nnUNetv2_vit_study", "report", STUDY, "-o", page.parent, "--test", dataset / "imagesTs", truth)
    cases = sorted(path.stem for path in truth.glob("*.png"))
    picture = OUTPUT / "demo.png"
    draw_cases(cases[:SHOWN_CASES], dataset / "imagesTs", truth, predictions, picture)
    report(predictions / "summary.json", truth)
    print(f"\nPicture: {picture}\nReport on the study: {page}\nFinished in {time() - start:.0f} s")


if __name__ == "__main__":
    main()
