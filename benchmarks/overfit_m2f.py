"""Let a network of mask classification overfit crops of four real images: what it cannot draw, it cannot be trained to
draw.

usage: python benchmarks/overfit_m2f.py RAW_FOLDER [--network m2f] [--dataset Dataset101_LESAV] [--backbone dinov3]
           [--side 256] [--steps 200] [--to-the-end] [--picture FILE.png]

RAW_FOLDER is nnU-Net's raw folder. Four training images, spread evenly over the data set, give their `side` × `side`
crop with most foreground, at full resolution. All labels count as foreground. The network is that of the packaged
configuration `m2f`, `eomt` or `pmt` with a tiny backbone from random weights, all of it trained, and 20 queries;
Mask2Former has hidden_dim 64, and 256 channels instead of 4,096 inside of the head's feed-forward networks. As the
trainer does, it compares the masks of `DenseToM2FTargetConverter` with all layers, at 4,096 points per mask instead of
12,544, and trains with AdamW and the configuration's maximum gradient norm. Masked attention is annealed away, block by
block, over the steps from an eighth to three quarters of all. Every step sees two of the four crops; the learning rate
warms up to 0.002 within 20 steps and falls to zero along a cosine.

Every 20 steps the dense logits in evaluation mode are compared with the truth. Exits with 1 if the mean Dice over the
crops does not exceed 0.85 within the steps.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from overfit import Sample, cut_window, densest_window, dice, read_channels
from packaged_decoders import (
    REDUCED_MASK_CLASSIFICATION,
    TINY,
    Form,
    MaskLoss,
    build_network,
    create_mask_loss,
    read_form,
)
from torch import Tensor, nn
from tqdm import tqdm

from nnunetv2.model.backbone import FAMILIES
from nnunetv2.training.vit.mask_annealing import mask_probabilities

TARGET, CROPS, PER_STEP, CLASSES, CHECK_EVERY = 0.85, 4, 2, 2, 20
LEARNING_RATE, WARM_UP = 2e-3, 20
SETTINGS = {
    name: (*TINY, *reduced, "m2f_train.num_points=4096") for name, reduced in REDUCED_MASK_CLASSIFICATION.items()
}
# Of Mask2Former instead of 4,096, which no configuration changes
UNCONFIGURED = {"m2f": {"dim_feedforward": 256}}
ANNEALED_FROM, ANNEALED_TO = 1 / 8, 3 / 4


class Fit(NamedTuple):
    """What came of the training.

    Attributes:
        steps: after how many the target was passed; None if never.
        dice: that of every crop when their mean was best.
        labels: those it belongs to, (B, H, W).
    """

    steps: int | None
    dice: list[float]
    labels: Tensor

    @property
    def mean(self) -> float:
        """Mean Dice of the crops."""
        return float(np.mean(self.dice))


# --- the images -----------------------------------------------------------------------------------------------------


def choose_samples(dataset: Path, side: int) -> list[Sample]:
    """Cut the fullest crops out of images that are spread evenly over a data set."""
    labels = [path for path in sorted((dataset / "labelsTr").iterdir()) if path.is_file()]
    if len(labels) < CROPS:
        sys.exit(f"{dataset.name} has {len(labels)} labels in labelsTr, not {CROPS}")
    return [cut_sample(path, side) for path in labels[:: len(labels) // CROPS][:CROPS]]


def cut_sample(path: Path, side: int) -> Sample:
    """Cut the crop with most foreground out of the image of a label file."""
    mask = read_channels(path)[0] > 0
    if min(mask.shape) < side:
        sys.exit(f"the image of {path.name} is smaller than {side} × {side}")
    _, row, column = densest_window(mask, side)
    return cut_window(path, mask, row, column, side)


# --- the training ---------------------------------------------------------------------------------------------------


def create(name: str, backbone: str, channels: int) -> tuple[nn.Module, MaskLoss, float]:
    """Build network and loss from a small configuration; return its maximum gradient norm as well."""
    config = read_form(Form(name, SETTINGS[name]), [f"model.backbone={backbone}"])
    torch.manual_seed(0)
    network = build_network(config, CLASSES, channels, PER_STEP, **UNCONFIGURED.get(name, {}))
    return network, create_mask_loss(config, CLASSES), config.gradient_clip


def create_schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Warm up, and fall to zero along a cosine."""

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / WARM_UP) * (1 + np.cos(np.pi * step / steps)) / 2

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def masks_at(progress: float, blocks: int) -> list[float]:
    """How likely masks apply: one block after the other from 1 to 0 as the training progresses from 0 to 1."""
    return mask_probabilities(
        progress,
        [ANNEALED_FROM + (ANNEALED_TO - ANNEALED_FROM) * block / blocks for block in range(blocks)],
        [ANNEALED_FROM + (ANNEALED_TO - ANNEALED_FROM) * (block + 1) / blocks for block in range(blocks)],
    )


@torch.no_grad()
def evaluate(network: nn.Module, images: Tensor, truths: Tensor) -> Fit:
    """Compare the dense logits in evaluation mode with the truth.

    Args:
        network: gives logits (B, 2, H, W).
        images: (B, C, H, W).
        truths: (B, 1, H, W), 0 and 1.
    """
    labels = network.eval()(images).argmax(1)
    pairs = zip(labels, truths[:, 0], strict=True)
    return Fit(None, [dice(label, truth) for label, truth in pairs], labels)


def train(samples: Sequence[Sample], args: argparse.Namespace) -> Fit:
    """Train one network on all samples; print the mean Dice every few steps.

    Args:
        samples: of one size.
        args: those of the command.
    """
    images, truths = (torch.cat([sample[i] for sample in samples]) for i in (1, 2))
    network, loss, largest_norm = create(args.network, args.backbone, images.shape[1])
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=0)
    schedule = create_schedule(optimizer, args.steps)
    passed, best = None, Fit(None, [-1.0], truths[:, 0])
    for step in tqdm(range(1, args.steps + 1), desc="steps", leave=False):
        optimizer.zero_grad()
        network.set_mask_probabilities(masks_at(step / args.steps, network.num_masked_blocks))
        chosen = torch.randperm(len(images))[:PER_STEP]
        queries = network.train()(images[chosen])
        total = loss(queries, truths[chosen])
        total.backward()
        nn.utils.clip_grad_norm_(network.parameters(), largest_norm)
        optimizer.step()
        schedule.step()
        if step % CHECK_EVERY and step < args.steps:
            continue
        fit = evaluate(network, images, truths)
        tqdm.write(f"step {step:>4}: loss {total.item():7.2f}, mean Dice {fit.mean:.3f}")
        best = max(best, fit, key=lambda fit: fit.mean)
        if passed is None and fit.mean > TARGET:
            passed = step
        if passed is not None and not args.to_the_end:
            break
    return best._replace(steps=passed)


# --- the report -----------------------------------------------------------------------------------------------------


def draw(samples: Sequence[Sample], fit: Fit, path: Path) -> None:
    """Write a picture: a column per crop, with image, truth and prediction."""
    figure, axes = plt.subplots(3, len(samples), figsize=(3 * len(samples), 9.6), squeeze=False, layout="constrained")
    for column, sample, reached, labels in zip(axes.T, samples, fit.dice, fit.labels, strict=True):
        channels = sample.image[0].movedim(0, -1).numpy()
        tiles = {
            sample.name.replace(", ", "\n", 1): channels[..., :3] if channels.shape[-1] >= 3 else channels[..., 0],
            "truth": sample.truth[0, 0].numpy(),
            f"prediction: Dice {reached:.3f}": labels.numpy(),
        }
        for panel, (title, tile) in zip(column, tiles.items(), strict=True):
            panel.imshow(tile, cmap="gray", interpolation="nearest")
            panel.set_title(title)
            panel.set_axis_off()
    figure.savefig(path, dpi=80)


def main() -> None:
    """Train, draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path)
    parser.add_argument("--network", default="m2f", choices=list(SETTINGS))
    parser.add_argument("--dataset", default="Dataset101_LESAV")
    parser.add_argument("--backbone", default="dinov3", choices=list(FAMILIES))
    parser.add_argument("--side", type=int, default=256, help="of the crops, in pixels")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--to-the-end", action="store_true", help="go on when the target is passed")
    parser.add_argument("--picture", type=Path, help="write images, truths and predictions to this file")
    args = parser.parse_args()
    if not (args.raw / args.dataset / "labelsTr").is_dir():
        parser.error(f"no data set of nnU-Net with a folder labelsTr in {args.raw / args.dataset}")
    samples = choose_samples(args.raw / args.dataset, args.side)
    for sample in samples:
        print(f"{args.dataset}, {sample.name}: {sample.truth.float().mean():.1%} foreground")
    start = perf_counter()
    fit = train(samples, args)
    for sample, reached in zip(samples, fit.dice, strict=True):
        print(f"{sample.name}: Dice {reached:.3f}")
    minutes = (perf_counter() - start) / 60
    print(f"best mean Dice {fit.mean:.3f}; above {TARGET} after {fit.steps or 'no'} steps; {minutes:.1f} minutes")
    if args.picture:
        draw(samples, fit, args.picture)
    if fit.steps is None:
        sys.exit(f"not learned within {args.steps} steps: mean Dice {fit.mean:.3f}, not above {TARGET}")


if __name__ == "__main__":
    main()
