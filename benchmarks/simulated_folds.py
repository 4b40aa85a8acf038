"""Trained folds as nnU-Net leaves them, with simulated predictions and without a training: for reports and their tests.

Truth and predictions are level sets of random fields: thin branching structures, of which worse experiments miss more.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter
from skimage.io import imsave

DATASET = "Dataset950_Simulated"
LABELS = {"background": 0, "artery": 1, "vein": 2}


@dataclass(frozen=True)
class Simulation:
    """What to simulate.

    Attributes:
        root: the folder of nnU-Net's three folders.
        experiments: name -> how far its predictions are from the truth, 0 (equal) to 1.
        folds: how many.
        cases: in all folds together.
        side: of the images, in pixels.
        seeds: of the trainings.
        sizes: numbers of training cases.
        probabilities: whether to keep them, as `--npz` does.
        labels: of the data set.
    """

    root: Path
    experiments: Mapping[str, float]
    folds: int = 2
    cases: int = 12
    side: int = 64
    seeds: Sequence[int | None] = (None,)
    sizes: Sequence[int | None] = (None,)
    probabilities: bool = False
    labels: Mapping[str, Any] = field(default_factory=lambda: dict(LABELS))

    @property
    def dataset_json(self) -> dict[str, Any]:
        """That of the data set."""
        channels = {str(i): "rgb_to_0_1" for i in range(3)}
        return {
            "channel_names": channels,
            "labels": dict(self.labels),
            "numTraining": self.cases,
            "file_ending": ".png",
        }

    def case(self, index: int) -> str:
        """Name of a case."""
        return f"image_{index:03d}"

    def fold_cases(self, fold: int) -> list[int]:
        """The validation cases of a fold."""
        return list(range(self.cases))[fold :: self.folds]

    def fold_folder(self, experiment: str, fold: int, seed: int | None = None, size: int | None = None) -> Path:
        """Where a trained fold lies."""
        suffix = (f"_seed{seed}" if len(self.seeds) > 1 else "") + (f"_n{size}" if size is not None else "")
        model = f"nnUNetTrainer__nnUNetPlans_{experiment}{suffix}__2d"
        return self.root / "results" / DATASET / model / f"fold_{fold}"


def simulate(simulation: Simulation) -> None:
    """Write the data set and all trained folds, and set nnU-Net's variables to them."""
    fields = _fields(simulation.side, 8)
    _write_data(simulation, fields)
    for number, (experiment, distance) in enumerate(simulation.experiments.items()):
        for seed in simulation.seeds:
            for size in simulation.sizes:
                for fold in range(simulation.folds):
                    folder = simulation.fold_folder(experiment, fold, seed, size)
                    noise = distance + (0.0 if size is None else 0.6 / size)
                    rng = np.random.default_rng([number, fold, seed or 0, size or 0])
                    _write_fold(simulation, folder, fold, noise, number, fields, rng)
    _write_splits(simulation)
    for variable, name in (
        ("nnUNet_raw", "raw"),
        ("nnUNet_preprocessed", "preprocessed"),
        ("nnUNet_results", "results"),
    ):
        os.environ[variable] = str(simulation.root / name)


def _write_splits(simulation: Simulation) -> None:
    splits = []
    for fold in range(simulation.folds):
        held_out = simulation.fold_cases(fold)
        training = [simulation.case(case) for case in range(simulation.cases) if case not in held_out]
        splits.append({"train": training, "val": [simulation.case(case) for case in held_out]})
    write_json(simulation.root / "preprocessed" / DATASET / "splits_final.json", splits)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file and the folders that lead to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _fields(side: int, number: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    smooth = [gaussian_filter(rng.normal(size=(side, side)), side / 24, mode="wrap") for _ in range(number)]
    return np.stack([one / one.std() for one in smooth])


def _shifted(fields: np.ndarray, index: int, case: int) -> np.ndarray:
    side = fields.shape[-1]
    return np.roll(fields[index], (7 * case * side // 64, 11 * case * side // 64), (0, 1))


def _segment(first: np.ndarray, second: np.ndarray, width: float) -> np.ndarray:
    labels = np.zeros(first.shape, np.uint8)
    labels[np.abs(first) < width] = 1
    labels[np.abs(second) < 1.3 * width] = 2
    return labels


def _truth_fields(fields: np.ndarray, case: int) -> tuple[np.ndarray, np.ndarray]:
    return _shifted(fields, 0, case), _shifted(fields, 1, case)


def _write_data(simulation: Simulation, fields: np.ndarray) -> None:
    raw, preprocessed = (simulation.root / name / DATASET for name in ("raw", "preprocessed"))
    for folder in (raw / "imagesTr", raw / "labelsTr", preprocessed / "gt_segmentations"):
        folder.mkdir(parents=True, exist_ok=True)
    for folder in (raw, preprocessed):
        write_json(folder / "dataset.json", simulation.dataset_json)
    for case in range(simulation.cases):
        labels = _segment(*_truth_fields(fields, case), 0.12)
        lit = 150 + 20 * _shifted(fields, 2, case)
        image = np.stack([lit + 40, lit * 0.6 - 30 * (labels == 2), lit * 0.3], axis=-1)
        image[labels > 0] *= 0.75
        name = simulation.case(case)
        imsave(raw / "imagesTr" / f"{name}_0000.png", image.clip(0, 255).astype(np.uint8), check_contrast=False)
        for folder in (raw / "labelsTr", preprocessed / "gt_segmentations"):
            imsave(folder / f"{name}.png", labels, check_contrast=False)


def _write_fold(
    simulation: Simulation,
    folder: Path,
    fold: int,
    noise: float,
    number: int,
    fields: np.ndarray,
    rng: np.random.Generator,
) -> None:
    validation = folder / "validation"
    validation.mkdir(parents=True, exist_ok=True)
    for case in simulation.fold_cases(fold):
        difficulty = 0.25 * noise * (0.5 + np.random.default_rng(case).random())
        first, second = _truth_fields(fields, case)
        disturbed = [
            one + difficulty * np.roll(_shifted(fields, 3 + i, case), rng.integers(0, simulation.side), 1)
            for i, one in enumerate((first, second))
        ]
        labels = _segment(*disturbed, 0.12 * rng.uniform(0.85, 1.15))
        path = validation / f"{simulation.case(case)}.png"
        imsave(path, labels, check_contrast=False)
        if simulation.probabilities:
            _write_probabilities(path, labels)
    write_json(validation / "summary.json", {"foreground_mean": {}, "mean": {}, "metric_per_case": []})
    _write_records(simulation, folder, number, noise)


def _write_probabilities(path: Path, labels: np.ndarray) -> None:
    one_hot = np.stack([gaussian_filter((labels == label).astype(np.float32), 1) for label in range(3)])
    np.savez_compressed(path.with_suffix(".npz"), probabilities=one_hot[:, None] / one_hot.sum(0))


def _write_records(simulation: Simulation, folder: Path, number: int, noise: float) -> None:
    write_json(folder.parent / "dataset.json", simulation.dataset_json)
    configuration = {"batch_size": 2, "patch_size": [simulation.side] * 2, "spacing": [1.0, 1.0]}
    plans = {"image_reader_writer": "NaturalImage2DIO", "configurations": {"2d": configuration}}
    write_json(folder.parent / "plans.json", plans)
    write_json(folder / "debug.json", {"num_iterations_per_epoch": "250", "gpu_name": "simulated GPU"})
    write_json(folder / "cost.json", simulated_cost(number))
    lines = []
    for epoch in range(30):
        dice = (0.9 - noise) * (1 - np.exp(-(epoch + 1) / 8))
        lines += [
            f"2026-01-01 00:00:00.000000: Epoch {epoch} ",
            f"2026-01-01 00:00:00.000000: train_loss {-dice:.4f} ",
            f"2026-01-01 00:00:00.000000: val_loss {0.05 - dice:.4f} ",
            f"2026-01-01 00:00:00.000000: Pseudo dice [np.float32({dice:.4f}), np.float32({dice - 0.05:.4f})] ",
        ]
    (folder / "training_log_2026_1_1_00_00_00.txt").write_text("\n".join(lines))


def simulated_cost(number: int) -> dict[str, Any]:
    """What `cost.json` says of the experiment of a number."""
    return {
        "total_seconds": 3000.0 * (number + 1),
        "training_seconds": 2800.0 * (number + 1),
        "validation_seconds": 20.0 * (number + 1),
        "step_seconds_median": 0.05 * (number + 1),
        "peak_reserved_bytes": 2**30 * (4 + 3 * number),
        "device": "simulated GPU",
        "processes": 1,
        "parameters": 30_000_000 * (number + 1) ** 2,
        "trainable_parameters": 30_000_000 // (number + 1),
        "flops": 90_000_000_000 * (number + 1),
        "versions": {"torch": "2.6.0", "nnunetv2": "2.8.1"},
    }
