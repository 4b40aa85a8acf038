"""Does the data loader of segmentation keep up with the training, and where does its time go?

usage: python benchmarks/segmentation_loader.py [--workers 0 1 2] [--batches 16] [--samples 48] [--batch 2] [--steps 2]
           [--device cpu] [--precision float32] [--heads linear m2f]

Photographs of 683 × 512 pixels (JPEG, labels PNG, a dozen of 150 classes each, as in ADE20K) are made in a temporary
folder. For each head the loader of a training with ADE20K's augmentation (half to twice the size, crops of 512 × 512)
then shows:
steps: CPU time of each part of the pipeline per sample.
loader: images per second for several numbers of workers.
need: images per second of training steps of the linear head on a frozen ViT-B at 512 × 512, with random weights, on
`device`, without any loading; and how many times that rate the loader reaches. The loader keeps up from 1.0.
"""

import argparse
import tempfile
from collections import defaultdict
from itertools import islice
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from tqdm import tqdm

from dinov3.data.dataset import SegmentationDataset
from dinov3.data.images import read_image, read_labels
from dinov3.data.loaders import find_pairs, make_train_dataset, train_loader
from dinov3.eval.segmentation.config import SegmentationConfig, config_from
from dinov3.eval.segmentation.models.from_config import segmentor_from_config

HEIGHT, WIDTH, CROP, CLASSES, IMAGES = 512, 683, 512, 150, 16
NAMES = {  # of the steps of `make_segmentation_train_transforms`, in their order
    "ToTensors": "to tensors",
    "ReduceZeroLabel": "reduce zero label",
    "RandomResize": "resize",
    "RandomCropWithClassLimit": "crop",
    "RandomHorizontalFlip": "flip",
    "PadToSize": "pad",
    "ToLabels": "labels to int64",
    "SemanticToM2FTargets": "masks",
}
COMPOSED = ("colours", "normalise")  # the steps that are made of several


def write_images(root: Path) -> None:
    """Write images of smooth colours with noise, and labels in blocks."""
    noise = np.random.default_rng(0)
    for index in tqdm(range(IMAGES), "images", leave=False):
        part = "validation" if index == 0 else "training"
        for kind in ("images", "annotations"):
            (root / kind / part).mkdir(parents=True, exist_ok=True)
        coarse = noise.random((HEIGHT // 16, WIDTH // 16 + 1, 3))
        smooth = ndimage.zoom(coarse, (16, 16, 1), order=1)[:, :WIDTH] * 255
        photograph = np.clip(smooth + noise.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(photograph).save(root / f"images/{part}/{index}.jpg", quality=92)
        blocks = noise.choice(CLASSES + 1, 12, replace=False)[noise.integers(0, 12, (HEIGHT // 64, WIDTH // 64 + 1))]
        labels = blocks.repeat(64, 0).repeat(64, 1)[:, :WIDTH].astype(np.uint8)
        Image.fromarray(labels).save(root / f"annotations/{part}/{index}.png")


def configure(args: argparse.Namespace, root: Path, head: str, workers: int) -> SegmentationConfig:
    """The training to measure."""
    layers = "FOUR_EVEN_INTERVALS" if head == "m2f" else "LAST"
    return config_from(
        {
            "model": {"backbone": "dinov3", "backbone_size": "base", "pretrained": False},
            "bs": args.batch,
            "n_gpus": 1,
            "num_workers": workers,
            "model_dtype": args.precision.upper(),
            "datasets": {"root": str(root)},
            "decoder_head": {"type": head, "num_classes": CLASSES, "backbone_out_layers": layers},
            "transforms": {
                "train": {
                    "img_size": CROP,
                    "random_img_size_ratio_range": [0.5, 2.0],
                    "crop_size": [CROP, CROP],
                    "flip_prob": 0.5,
                }
            },
            "output_dir": str(root / "run"),
        }
    )


def dataset_of(config: SegmentationConfig) -> SegmentationDataset:
    """The data set of training."""
    return make_train_dataset(find_pairs(config.datasets, config.seed)[0], config)


def show_parts(config: SegmentationConfig, num_samples: int) -> None:
    """Print the CPU time of each part per sample."""
    dataset = dataset_of(config)
    composed = iter(COMPOSED)
    steps = [(NAMES.get(type(step).__name__) or next(composed), step) for step in dataset.transform.transforms]
    seconds: dict[str, float] = defaultdict(float)
    torch.manual_seed(0)
    for number in range(-4, num_samples):  # the first are a warm-up
        pair = dataset.pairs[number % len(dataset)]
        marks = [process_time()]
        image = read_image(pair.image)
        marks.append(process_time())
        sample = image, read_labels(pair.labels)
        marks.append(process_time())
        for _, step in steps:
            sample = step(*sample)
            marks.append(process_time())
        if number >= 0:
            for name, start, end in zip(
                ["read image", "read labels", *(name for name, _ in steps)], marks[:-1], marks[1:], strict=True
            ):
                seconds[name] += end - start
    total = sum(seconds.values())
    print(f"{config.decoder_head.type}: {1e3 * total / num_samples:.1f} ms of CPU time per sample")
    for name, value in seconds.items():
        print(f"  {name:<18}{1e3 * value / num_samples:>7.1f} ms {value / total:>6.0%}")


def loader_rate(loader: DataLoader, num_batches: int) -> float:
    """Images per second, once the workers have started."""
    batches = iter(loader)
    for _ in range(2 * max(1, loader.num_workers)):  # what they have prepared by then
        next(batches)
    start = perf_counter()
    images = sum(len(images) for images, _ in islice(batches, num_batches))
    return images / (perf_counter() - start)


def synchronise(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def step_rate(config: SegmentationConfig, device: torch.device, num_steps: int) -> float:
    """Images per second of training steps of the linear head, on a batch that is there already."""
    segmentor: nn.Module = segmentor_from_config(config).to(device).train()
    weights = [weight for weight in segmentor.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3)
    images = torch.randn(config.bs, 3, CROP, CROP, device=device)
    labels = torch.randint(CLASSES, (config.bs, CROP, CROP), device=device)
    low_precision = config.model_dtype.name != "FLOAT32"
    for step in range(num_steps + 1):
        if step == 1:  # the first one is a warm-up
            synchronise(device)
            start = perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=low_precision):
            logits = nn.functional.interpolate(segmentor(images), size=(CROP, CROP), mode="bilinear")
            loss = cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    synchronise(device)
    return num_steps * config.bs / (perf_counter() - start)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batches", type=int, default=16, help="that the loader is measured with")
    parser.add_argument("--samples", type=int, default=48, help="that the parts are measured with")
    parser.add_argument("--batch", type=int, default=2, help="images per batch")
    parser.add_argument("--steps", type=int, default=2, help="training steps")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--heads", nargs="+", choices=["linear", "m2f"], default=["linear", "m2f"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root)
        need = step_rate(configure(args, root, "linear", 0), torch.device(args.device), args.steps)
        print(f"need: {need:.2f} images per second of a ViT-B with the linear head, {CROP} × {CROP}, on {args.device}")
        for head in args.heads:
            show_parts(configure(args, root, head, 0), args.samples)
            for workers in args.workers:
                config = configure(args, root, head, workers)
                rate = loader_rate(train_loader(dataset_of(config), config), args.batches)
                print(f"  {workers} workers: {rate:.1f} images per second, {rate / need:.1f} times the need")


if __name__ == "__main__":
    main()
