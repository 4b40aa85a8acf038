"""Train tiny segmentors on images on disk for 2,000 steps, and watch the memory of the process over the last 1,000.

usage: python benchmarks/segmentation_memory.py [linear] [m2f]

Loading, augmentation, checkpoints, evaluations, pictures and logs run in the same process. Exit code 1 if at any later
step more memory is resident than 2% above that of step 1,000: before it, the allocator still finds its working size.
"""

import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import psutil
import torch
from PIL import Image

from dinov3.eval.segmentation.config import config_from
from dinov3.eval.segmentation.train import train_segmentation
from dinov3.eval.segmentation.train_m2f import train_m2f_segmentation
from dinov3.eval.segmentation.training_loop import TrainingLoop

KINDS = {"linear": train_segmentation, "m2f": train_m2f_segmentation}
STEPS, FIRST, INTERVAL = 2000, 1000, 100
ALLOWED_GROWTH = 0.02
SIDE, IMAGES, CLASSES = 64, 12, 3


def write_images(root: Path) -> None:
    """Write random images, and labels of one class more from left to right."""
    random = np.random.default_rng(0)
    labels = np.broadcast_to(np.arange(SIDE) * CLASSES // SIDE, (SIDE, SIDE)).astype(np.uint8)
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for index in range(IMAGES):
        Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(root / f"images/{index}.png")
        Image.fromarray(labels).save(root / f"labels/{index}.png")


def train(kind: str, root: Path) -> list[float]:
    """Train; return the resident memory in MiB after every step."""
    layers = "LAST" if kind == "linear" else "FOUR_EVEN_INTERVALS"
    config = config_from(
        {
            "model": {"backbone": "dinov3", "backbone_size": "tiny", "pretrained": False},
            **{"n_gpus": 1, "num_workers": 0, "output_dir": str(root / kind)},
            "datasets": {"root": str(root)},
            "decoder_head": {
                **{"type": kind, "num_classes": CLASSES, "backbone_out_layers": layers},
                **{"hidden_dim": 32, "num_queries": 5},
            },
            "scheduler": {"total_iter": STEPS},
            "transforms": {"train": {"crop_size": [SIDE, SIDE], "random_img_size_ratio_range": [0.5, 2.0]}},
            "m2f_train": {"num_points": 64},
            "eval": {
                **{"mode": "whole", "reduce_zero_label": False},
                **{"eval_interval": INTERVAL, "num_visualizations": 2},
            },
            "checkpoint": {"interval": INTERVAL},
        }
    )
    process, step, resident = psutil.Process(), TrainingLoop._train_step, []

    def watched(loop: TrainingLoop, batches: object) -> None:
        step(loop, batches)
        resident.append(process.memory_info().rss / 2**20)

    with mock.patch.object(TrainingLoop, "_train_step", watched):
        KINDS[kind](None, config)
    return resident


def report(kind: str, resident: list[float]) -> float:
    """Print the memory over the steps; return its growth from step `FIRST` to the highest later as a fraction."""
    for step in range(INTERVAL, len(resident) + 1, INTERVAL):
        print(f"{kind}, step {step:>5}: {resident[step - 1]:8.1f} MiB")
    growth = max(resident[FIRST:]) / resident[FIRST - 1] - 1
    last = f"highest of {len(resident)} steps"
    print(f"{kind}: growth from step {FIRST} to the {last}: {growth:+.2%} (allowed: {ALLOWED_GROWTH:+.0%})")
    return growth


def main(kinds: list[str]) -> int:
    """Watch trainings; return the exit code."""
    torch.set_num_threads(1)  # the networks are tiny
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder))
        growths = [report(kind, train(kind, Path(folder))) for kind in kinds or list(KINDS)]
    return int(max(growths) > ALLOWED_GROWTH)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
