"""Let every packaged decoder overfit one real image: what it cannot draw, it cannot be trained to draw.

usage: python benchmarks/overfit.py RAW_FOLDER [--dataset Dataset101_LESAV] [--backbone dinov3] [--side 256]
           [--steps 600] [--to-the-end] [--forms NAME ...] [--picture FILE.png]

RAW_FOLDER is nnU-Net's raw folder. Each training image offers its `side` × `side` crop with most foreground, at full
resolution; the crop with the median of foreground is taken. All labels count as foreground. The network is a tiny
backbone from random weights, all of it trained, with the decoder of the packaged configuration at a smaller width and
without dropout.

A decoder passes if its Dice in evaluation exceeds 0.9 within the steps. Those that predict at the patch grid (stride 16
or 14) cannot draw thin structures: they pass at 0.9 times the best Dice of logits on that grid, which is found by
optimising the logits themselves with the same loss, resized as the decoders do. Exits with 1 where a decoder fails.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import SimpleITK as sitk
import torch
from packaged_decoders import FORMS, REDUCED, TINY, build_network, create_dense_loss, read_form
from torch import Tensor, nn
from tqdm import tqdm

from nnunetv2.model.backbone import FAMILIES
from nnunetv2.model.upsample import resize

TARGET = 0.9
AT_PATCH_GRID = ("linear", "segformer bilinear", "upernet plain")
LEARNING_RATE, GRID_LEARNING_RATE, GRID_STEPS = 2e-3, 1.0, 1000
CHECK_EVERY, COLUMNS = 10, 5


class Sample(NamedTuple):
    """An image (1, C, H, W) in [0, 1] and its foreground (1, 1, H, W) as 0 and 1."""

    name: str
    image: Tensor
    truth: Tensor


class Goal(NamedTuple):
    """How to optimise, and for what.

    Attributes:
        target: the Dice whose first passing is noted.
        steps: largest number of steps.
        learning_rate: at the start; it falls to zero along a cosine of this length.
        to_the_end: whether to go on when the target is passed.
    """

    target: float
    steps: int
    learning_rate: float
    to_the_end: bool


class Fit(NamedTuple):
    """What came of an optimisation.

    Attributes:
        steps: after how many the target was passed; None if never.
        dice: the best one that was seen.
        labels: those it belongs to, (H, W).
    """

    steps: int | None
    dice: float
    labels: np.ndarray


# --- the image ------------------------------------------------------------------------------------------------------


def read_channels(path: Path) -> np.ndarray:
    """Read an image file as (C, H, W)."""
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


def densest_window(mask: np.ndarray, side: int) -> tuple[int, int, int]:
    """Foreground of the fullest `side` × `side` window, and its first row and column."""
    sums = np.pad(mask.astype(np.int64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    windows = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    row, column = np.unravel_index(windows.argmax(), windows.shape)
    return int(windows.max()), int(row), int(column)


def choose_sample(dataset: Path, side: int) -> Sample:
    """Cut the crop with most foreground out of the training image that is the median in this."""
    labels = [path for path in sorted((dataset / "labelsTr").iterdir()) if path.is_file()]
    if not labels:
        sys.exit(f"no labels in {dataset / 'labelsTr'}")
    masks = {path: read_channels(path)[0] > 0 for path in labels}
    found = {path: densest_window(mask, side) for path, mask in masks.items() if min(mask.shape) >= side}
    if not found:
        sys.exit(f"no image of {dataset.name} is as large as {side} × {side}")
    path = sorted(found, key=lambda path: found[path][0])[len(found) // 2]
    _, row, column = found[path]
    return cut_window(path, masks[path], row, column, side)


def cut_window(path: Path, mask: np.ndarray, row: int, column: int, side: int) -> Sample:
    """Cut a window out of the image of a label file and out of its mask (H, W); the image is scaled to [0, 1]."""
    folder = path.parents[1] / "imagesTr"
    crop = np.s_[..., row : row + side, column : column + side]
    files = sorted(folder.glob(f"{path.stem}_*{path.suffix}"))
    if not files:
        sys.exit(f"no image of {path.name} in {folder}; only data sets of photographs can be used")
    image = np.concatenate([read_channels(file) for file in files])[crop].astype(np.float32)
    image = (image - image.min()) / max(float(np.ptp(image)), 1e-6)
    truth = torch.from_numpy(mask[crop].astype(np.int64))
    return Sample(
        f"{path.stem}, rows from {row}, columns from {column}", torch.from_numpy(image)[None], truth[None, None]
    )


# --- the optimisation -----------------------------------------------------------------------------------------------


def dice(labels: Tensor, truth: Tensor) -> float:
    """Dice of foreground 1 of two label maps."""
    both = int((labels * truth).sum())
    return 2 * both / max(int(labels.sum() + truth.sum()), 1)


def optimise(
    predict: Callable[[bool], Tensor], parameters: Iterable[nn.Parameter], truth: Tensor, goal: Goal, name: str
) -> Fit:
    """Minimise nnU-Net's loss of one prediction, and evaluate the result every few steps.

    Args:
        predict: gives the logits (1, 2, H, W), for training or for evaluation.
        parameters: what to optimise.
        truth: foreground, (1, 1, H, W).
        goal: Dice at which it may stop.
        name: what to call it beside the progress bar.
    """
    parameters, loss = list(parameters), create_dense_loss()
    optimizer = torch.optim.AdamW(parameters, goal.learning_rate, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, goal.steps)
    passed, best = None, Fit(None, -1.0, np.zeros(()))
    for step in tqdm(range(1, goal.steps + 1), desc=name, leave=False):
        optimizer.zero_grad()
        loss(predict(True), truth).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % CHECK_EVERY and step < goal.steps:
            continue
        with torch.no_grad():
            labels = predict(False).argmax(1, keepdim=True)
        reached = dice(labels, truth)
        if passed is None and reached > goal.target:
            passed = step
        if reached > best.dice:
            best = Fit(None, reached, labels[0, 0].numpy())
        if passed is not None and not goal.to_the_end:
            break
    return best._replace(steps=passed)


def fit_grid(sample: Sample, patch_size: int) -> Fit:
    """Find the best logits on the grid of patches by optimising themselves."""
    height, width = sample.truth.shape[-2:]
    cells = [-(-side // patch_size) for side in (height, width)]
    padded = [count * patch_size for count in cells]
    grid = nn.Parameter(torch.zeros(1, 2, *cells))
    goal = Goal(TARGET, GRID_STEPS, GRID_LEARNING_RATE, to_the_end=True)
    return optimise(lambda _: resize(grid, padded)[..., :height, :width], [grid], sample.truth, goal, "grid")


def create_network(name: str, backbone: str, channels: int) -> nn.Module:
    """Build a form of a decoder on a tiny backbone from random weights."""
    torch.manual_seed(0)
    form = FORMS[name]
    config = read_form(form, [*TINY, *REDUCED[form.config], f"model.backbone={backbone}"])
    return build_network(config, num_classes=2, channels=channels)


def fit_network(network: nn.Module, sample: Sample, goal: Goal, name: str) -> Fit:
    """Train a network on the sample."""

    def predict(training: bool) -> Tensor:
        return network.train(training)(sample.image)

    return optimise(predict, network.parameters(), sample.truth, goal, name)


# --- the report -----------------------------------------------------------------------------------------------------


def draw(sample: Sample, fits: dict[str, Fit], path: Path) -> None:
    """Write a picture: image, truth, and what each decoder gives."""
    channels = sample.image[0].movedim(0, -1).numpy()
    tiles = {"image": channels[..., :3] if channels.shape[-1] >= 3 else channels[..., 0]}
    tiles["truth"] = sample.truth[0, 0].numpy()
    tiles |= {f"{name}: Dice {fit.dice:.3f}": fit.labels for name, fit in fits.items()}
    rows = -(-len(tiles) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(3 * COLUMNS, 3.3 * rows), squeeze=False, layout="constrained")
    for panel in axes.flat:
        panel.set_axis_off()
    for panel, (title, tile) in zip(axes.flat, tiles.items(), strict=False):
        panel.imshow(tile, cmap="gray", interpolation="nearest")
        panel.set_title(title)
    figure.savefig(path, dpi=80)


def main() -> None:
    """Print one line per decoder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path)
    parser.add_argument("--dataset", default="Dataset101_LESAV")
    parser.add_argument("--backbone", default="dinov3", choices=list(FAMILIES))
    parser.add_argument("--side", type=int, default=256, help="of the crop, in pixels")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--to-the-end", action="store_true", help="go on when the target is passed")
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS))
    parser.add_argument("--picture", type=Path, help="write image, truth and predictions to this file")
    args = parser.parse_args()
    if not (args.raw / args.dataset / "labelsTr").is_dir():
        parser.error(f"no data set of nnU-Net with a folder labelsTr in {args.raw / args.dataset}")
    sample = choose_sample(args.raw / args.dataset, args.side)
    print(f"{args.dataset}, {sample.name}: {sample.truth.float().mean():.1%} foreground")
    patch_size = create_network("linear", args.backbone, sample.image.shape[1]).patch_size
    grid = fit_grid(sample, patch_size)
    print(f"best logits at stride {patch_size}: Dice {grid.dice:.3f}")
    if grid.dice >= TARGET:
        parser.error(f"this crop does not tell fine decoders from coarse ones (limit {TARGET}): choose a larger --side")
    fits = {f"best at stride {patch_size}": grid}
    failed = []
    print(f"{'decoder':<24}{'target':>8}{'steps':>8}{'Dice':>8}")
    for name in args.forms:
        target = TARGET * grid.dice if name in AT_PATCH_GRID else TARGET
        goal = Goal(target, args.steps, LEARNING_RATE, args.to_the_end)
        network = create_network(name, args.backbone, sample.image.shape[1])
        fits[name] = fit = fit_network(network, sample, goal, name)
        print(f"{name:<24}{target:>8.3f}{fit.steps or 'never':>8}{fit.dice:>8.3f}", flush=True)
        if fit.steps is None:
            failed.append(name)
    if args.picture:
        draw(sample, fits, args.picture)
    if failed:
        sys.exit(f"not learned within {args.steps} steps: {', '.join(failed)}")


if __name__ == "__main__":
    main()
