"""Making pairs, data sets and the loader of a training from the configuration."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from dinov3.data.dataset import SegmentationDataset
from dinov3.data.images import image_size
from dinov3.data.layouts.registry import LAYOUTS, parse, recognise
from dinov3.data.layouts.request import Part
from dinov3.data.pairs import ImagePair
from dinov3.data.sampling import DrawBatches
from dinov3.errors import ExperimentError
from dinov3.eval.segmentation.config import DatasetConfig, SegmentationConfig
from dinov3.eval.segmentation.transforms import (
    collate_segmentation,
    make_segmentation_eval_transforms,
    make_segmentation_train_transforms,
)

__all__ = [
    "find_pairs",
    "find_validation_pairs",
    "make_eval_dataset",
    "make_train_dataset",
    "train_loader",
]


def find_pairs(datasets: DatasetConfig, seed: int) -> tuple[list[ImagePair], list[ImagePair]]:
    """Find the images of training and validation.

    `datasets.train` and `.val` name a layout and a part of it, such as `ADE20K:split=TRAIN`; if they are empty, the
    layout below `datasets.root` is recognised. The layouts: `ADE20K`, `CITYSCAPES` and `FOLDER`, see the modules of
    `dinov3.data.layouts`.

    Args:
        datasets: root, layout and split.
        seed: of the split, where it is drawn.

    Returns:
        Pairs for training and for validation, in a fixed order.

    Raises:
        ExperimentError: files are missing, or images and labels do not fit together.
    """
    return _part(datasets, "TRAIN", seed), find_validation_pairs(datasets, seed)


def find_validation_pairs(datasets: DatasetConfig, seed: int) -> list[ImagePair]:
    """Find the images of validation alone: see `find_pairs`."""
    return _part(datasets, "VAL", seed)


def _part(datasets: DatasetConfig, split: str, seed: int) -> list[ImagePair]:
    root = Path(datasets.root)
    if not root.is_dir():
        raise ExperimentError(f"datasets.root must be a folder, found {root}")
    key = {"TRAIN": "train", "VAL": "val"}[split]
    named = getattr(datasets, key)
    layout, split = parse(named, f"datasets.{key}") if named else (recognise(root), split)
    return LAYOUTS[layout].find(root, Part(split, datasets.val_share, seed))


def make_train_dataset(pairs: Sequence[ImagePair], config: SegmentationConfig) -> SegmentationDataset:
    """Make the data set of training, with the augmentation and the targets that the configuration sets.

    Raises:
        ExperimentError: the images have different sizes, and no crop makes them fit into a batch.
    """
    options = config.transforms.train
    if config.bs > 1 and options.crop_size is None:
        _refuse_several_sizes(pairs, config.bs)
    transform = make_segmentation_train_transforms(
        options.img_size,
        options.random_img_size_ratio_range,
        options.crop_size,
        options.flip_prob,
        decoder_type=config.decoder_head.type,
        **_common(config),
    )
    return SegmentationDataset(pairs, transform, config.seed, config.datasets.max_value)


def _refuse_several_sizes(pairs: Sequence[ImagePair], batch_size: int) -> None:
    sizes = sorted({image_size(pair.image) for pair in pairs})
    if len(sizes) > 1:
        raise ExperimentError(
            f"transforms.train.crop_size must be set, or bs=1, as images of {len(sizes)} sizes, such as "
            f"{' and '.join(f'{height} x {width}' for height, width in sizes[:2])}, make no batch of {batch_size}"
        )


def make_eval_dataset(pairs: Sequence[ImagePair], config: SegmentationConfig) -> SegmentationDataset:
    """Make the data set of evaluation, with one view of every image, or with all those of test-time augmentation."""
    options = config.transforms.eval
    ratios = options.tta_ratios if config.eval.use_tta else (1.0,)
    transform = make_segmentation_eval_transforms(options.img_size, ratios, **_common(config))
    return SegmentationDataset(pairs, transform, config.seed, config.datasets.max_value)


def _common(config: SegmentationConfig) -> dict[str, Any]:
    transforms = config.transforms
    return {
        "reduce_zero_label": config.eval.reduce_zero_label,
        "mean": transforms.mean,
        "std": transforms.std,
    }


def train_loader(
    dataset: SegmentationDataset, config: SegmentationConfig, start_step: int = 0, num_processes: int = 1
) -> DataLoader:
    """Load the batches of a training, from some step to its end; it is iterated once.

    Accelerate's `prepare_data_loader` gives each process its share: of n processes with batches of `bs`, each step
    sees the samples that one process with batches of n · `bs` does.

    Args:
        dataset: of `make_train_dataset`.
        config: the configuration.
        start_step: number of steps of the optimizer that have been made.
        num_processes: number of processes.

    Returns:
        Batches of `collate_segmentation`, for all processes: `gradient_accumulation_steps` times `num_processes` of
        them for each step that is left.
    """
    batches_per_step = config.gradient_accumulation_steps * num_processes
    batches = DrawBatches(
        len(dataset),
        config.bs,
        config.scheduler.total_iter * batches_per_step,
        config.seed,
        first_batch=start_step * batches_per_step,
    )
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=config.num_workers,
        collate_fn=collate_segmentation,
        pin_memory=torch.cuda.is_available(),
    )
