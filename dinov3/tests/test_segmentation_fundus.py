"""Both decoders learn to segment real photographs of the retina: a tiny ViT from random weights, on the CPU."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from training_cases import merge

from dinov3.eval.segmentation.config import config_from
from dinov3.eval.segmentation.run import run_segmentation_with_dinov3

pytestmark = [pytest.mark.integration, pytest.mark.nightly]

COMMON = {
    "model": {"backbone": "dinov3", "backbone_size": "tiny", "pretrained": False},
    "lora": {"enabled": True, "lora_dropout": 0.0},
    "bs": 2,
    "n_gpus": 1,
    "num_workers": 0,
    "datasets": {"class_names": ["outside", "retina", "vessel"]},
    "optimizer": {"gradient_clip": 10.0},
    "transforms": {"train": {"img_size": 720, "crop_size": [192, 192], "flip_prob": 0.5}, "eval": {"img_size": 720}},
    "eval": {"reduce_zero_label": False, "crop_size": 256, "stride": 256, "num_visualizations": 2},
}
LINEAR = {
    "decoder_head": {"type": "linear", "backbone_out_layers": "FOUR_EVEN_INTERVALS", "num_classes": 3, "dropout": 0.0},
    "train": {"diceloss_weight": 1.0},
    "scheduler": {"total_iter": 200, "constructor_kwargs": {"warmup_iters": 20}},
    "optimizer": {"lr": 0.003},
}
M2F = {
    "decoder_head": {
        "type": "m2f",
        "backbone_out_layers": "FOUR_EVEN_INTERVALS",
        "num_classes": 3,
        "hidden_dim": 64,
        "num_queries": 20,
    },
    "m2f_train": {"num_points": 1024},
    "scheduler": {"total_iter": 150, "constructor_kwargs": {"warmup_iters": 10}},
    "optimizer": {"lr": 0.0005},
}


@pytest.fixture
def fundus(real_data: Path, tmp_path: Path) -> Path:
    """LES-AV as plain folders; the classes are the outside of the field of view, the retina and its vessels."""
    source, folder = real_data / "Dataset101_LESAV", tmp_path / "fundus"
    for part, suffix in (("train", "Tr"), ("val", "Ts")):
        for kind in ("images", "labels"):
            (folder / kind / part).mkdir(parents=True)
        for path in (source / f"images{suffix}").glob("*.png"):
            name = path.name.replace("_0000", "")
            shutil.copy(path, folder / "images" / part / name)
            view, vessels = (np.array(Image.open(source / f"{kind}{suffix}" / name)) for kind in ("fov", "labels"))
            Image.fromarray(np.where(vessels > 0, 2, view).astype(np.uint8)).save(folder / "labels" / part / name)
    return folder


def majority_miou(folder: Path) -> float:
    """The mIoU of predicting the most frequent class everywhere."""
    with (folder / "confusion_matrix.csv").open() as file:
        pixels = [sum(map(int, row[1:])) for row in [*csv.reader(file)][1:]]
    return max(pixels) / sum(pixels) / len(pixels)


@pytest.mark.parametrize(("changes", "margin"), [(LINEAR, 0.3), (M2F, 0.3)], ids=["linear", "m2f"])
def test_retina_and_vessels_are_learned(fundus: Path, tmp_path: Path, changes: dict[str, Any], margin: float):
    trained, again = tmp_path / "trained", tmp_path / "again"
    values = merge(merge(COMMON, changes), {"datasets": {"root": str(fundus)}, "output_dir": str(trained)})
    results = run_segmentation_with_dinov3(None, config_from(values))
    assert results["metrics"]["mIoU"] > majority_miou(trained) + margin
    logged = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    values |= {"eval_only": True, "load_from": str(trained / "checkpoint_final.pth"), "output_dir": str(again)}
    evaluated = run_segmentation_with_dinov3(None, config_from(values))
    assert evaluated["metrics"] == logged["metrics"] == results["metrics"]
