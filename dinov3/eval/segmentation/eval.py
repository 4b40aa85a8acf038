"""Evaluation of a segmentor on a data set: the same figures for any number of processes."""

import contextlib
import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from dinov3.data.dataset import SegmentationDataset
from dinov3.data.loaders import find_validation_pairs, make_eval_dataset
from dinov3.errors import ExperimentError
from dinov3.eval.segmentation.checked_pairs import checked_pairs
from dinov3.eval.segmentation.config import SegmentationConfig
from dinov3.eval.segmentation.figures import draw_examples
from dinov3.eval.segmentation.inference import make_inference
from dinov3.eval.segmentation.metrics import PER_CLASS, PerImageSegmentationMetrics, SegmentationMetrics, check_labels
from dinov3.eval.segmentation.models.from_config import segmentor_from_config
from dinov3.eval.segmentation.output_folder import claimed
from dinov3.eval.segmentation.processes import make_accelerator
from dinov3.eval.segmentation.report import RESULTS, class_names_of, describe_evaluation, write_report
from dinov3.eval.segmentation.results import Evaluation, Example
from dinov3.eval.segmentation.segmentor_checkpoint import load_segmentor
from dinov3.eval.segmentation.training_text import log_to_file
from dinov3.eval.segmentation.transforms import IGNORE_INDEX, collate_segmentation

EXAMPLE_SIDE = 512  # pixels, the longer side
PREDICTIONS, LOG = "predictions.png", "evaluation.log"

logger = logging.getLogger(__name__)


def evaluate_checkpoint(backbone: nn.Module | None, config: SegmentationConfig) -> dict[str, Any]:
    """Evaluate the checkpoint `load_from` on all images of validation, and write the results to `output_dir`.

    Args:
        backbone: the ViT; None: the one that the configuration names.
        config: of the evaluation.

    Returns:
        What `results.json` holds.

    Raises:
        ExperimentError: something in the configuration, the data set, the checkpoint or the folder that a user can put
            right.
    """
    accelerator = make_accelerator(config)
    with claimed(config, accelerator) as folder, log_to_file(folder / LOG, accelerator):
        _evaluate_into(folder, segmentor_from_config(config, backbone), config, accelerator)
        return json.loads((folder / RESULTS).read_text(encoding="utf-8"))


def _evaluate_into(folder: Path, model: nn.Module, config: SegmentationConfig, accelerator: Accelerator) -> None:
    """Load the checkpoint, evaluate it, and write the results."""
    class_names = class_names_of(config)
    logger.info(load_segmentor(model, config.load_from))
    pairs = find_validation_pairs(config.datasets, config.seed)
    dataset = make_eval_dataset(checked_pairs(pairs, "validation", config, accelerator, folder), config)
    evaluation = evaluate_segmentation_model(
        model.to(accelerator.device), dataset, config, accelerator, num_examples=config.eval.num_visualizations
    )
    if accelerator.is_main_process:
        write_report(evaluation, folder, class_names, describe_evaluation(model, config, config.load_from))
        if evaluation.examples:
            draw_examples(evaluation.examples, folder / PREDICTIONS, class_names, len(class_names), IGNORE_INDEX)
    accelerator.wait_for_everyone()
    figures = ", ".join(f"{name} {evaluation.metrics[name]:.4f}" for name in ("mIoU", "mDice", "aAcc"))
    logger.info("%s of %d images; all results are in %s", figures, evaluation.num_images, folder)


def evaluate_segmentation_model(
    segmentation_model: nn.Module,
    dataset: SegmentationDataset,
    config: SegmentationConfig,
    accelerator: Accelerator,
    *,
    max_samples: int = 0,
    num_examples: int = 0,
) -> Evaluation:
    """Evaluate a segmentor as `config.eval` says; each process takes its share of the images.

    Neither the training modes of the segmentor's modules nor any random state is changed.

    Args:
        segmentation_model: a `FeatureDecoder`, also as `accelerator.prepare` returned it.
        dataset: the images, with the transforms of evaluation.
        config: of the evaluation.
        accelerator: device, precision and processes.
        max_samples: number of images, the first of the data set; 0 for all.
        num_examples: number of images, the first of the data set, to return for drawing.

    Returns:
        The result, the same on every process and for any number of processes, except for the examples.

    Raises:
        ExperimentError: a label is no class; the message names the file.
    """
    start = time.monotonic()
    # processes may have different numbers of images, where DistributedDataParallel would wait for its peers
    model = accelerator.unwrap_model(segmentation_model)
    chosen = list(range(len(dataset)))[: max_samples or None]
    metrics = _metrics(config, accelerator.device)
    examples = []
    with accelerator.split_between_processes(chosen) as share, evaluation_mode(model):
        loader = _loader(dataset, share, config, accelerator.device)
        hidden = None if accelerator.is_main_process else True  # None: where there is no terminal
        for index, (views, labels) in zip(share, tqdm(loader, "evaluating", leave=False, disable=hidden), strict=True):
            pair = dataset.pairs[index]
            _check(labels, pair.labels, config)
            prediction = _predict(model, views, labels.shape[-2:], config, accelerator)
            metrics.update(prediction, labels.to(prediction.device))
            if index < num_examples:
                examples.append(_example(pair.name, views[0][0], labels[0], prediction[0], config))
    found = metrics.compute()  # waits for the other processes
    matrix = found.pop("confusion_matrix")
    examples = gather_object(examples)
    return Evaluation(
        metrics={name: float(value) for name, value in found.items() if name not in PER_CLASS},
        per_class={name: _with_none(found[name]) for name in PER_CLASS},
        confusion_matrix=matrix,
        num_images=len(chosen),
        seconds=time.monotonic() - start,
        examples=examples if accelerator.is_main_process else [],
    )


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Set a model to evaluation, and at the end each of its modules to what it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _metrics(config: SegmentationConfig, device: torch.device) -> SegmentationMetrics:
    kind = PerImageSegmentationMetrics if config.eval.compute_metric_per_image else SegmentationMetrics
    # processes with GPUs exchange tensors on these; other accelerators may lack float64
    on = device if device.type == "cuda" else torch.device("cpu")
    return kind(config.decoder_head.num_classes, IGNORE_INDEX).to(on)


def _loader(
    dataset: SegmentationDataset, share: Sequence[int], config: SegmentationConfig, device: torch.device
) -> DataLoader:
    """One image after the other, since their sizes differ."""
    return DataLoader(
        Subset(dataset, share),
        num_workers=min(config.num_workers, len(share)),
        collate_fn=collate_segmentation,
        pin_memory=device.type == "cuda",
        # without one of its own, a loader draws its seed from the random numbers of the training
        generator=torch.Generator(),
    )


def _check(labels: Tensor, path: object, config: SegmentationConfig) -> None:
    try:
        check_labels(labels, config.decoder_head.num_classes, IGNORE_INDEX)
    except ValueError as error:
        counted = ", counted without the label 0 (eval.reduce_zero_label)" if config.eval.reduce_zero_label else ""
        raise ExperimentError(f"{path}: {error}{counted}") from error


def _predict(
    model: nn.Module,
    views: Sequence[Tensor],
    size: Sequence[int],
    config: SegmentationConfig,
    accelerator: Accelerator,
) -> Tensor:
    """Classes, (1, H, W), where the probabilities lie: those of a large image may be in the memory of the CPU."""
    with accelerator.autocast():
        probabilities = make_inference(
            [view.to(accelerator.device, non_blocking=True) for view in views],
            model,
            config.eval.mode,
            rescale_to=size,
            crop_size=config.eval.crop_size,
            stride=config.eval.stride,
            apply_horizontal_flip=config.eval.use_tta,
        )
    return probabilities.argmax(1)


def _example(name: str, image: Tensor, labels: Tensor, prediction: Tensor, config: SegmentationConfig) -> Example:
    shrink = min(1.0, EXAMPLE_SIDE / max(labels.shape))
    size = [max(1, round(side * shrink)) for side in labels.shape]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.transforms.mean, config.transforms.std))
    colours = interpolate((image * std + mean)[None], size, mode="bilinear", antialias=True)[0].clamp(0, 255)
    maps = [interpolate(x[None, None].cpu().float(), size, mode="nearest-exact")[0, 0] for x in (labels, prediction)]
    return Example(name, colours.round().byte().permute(1, 2, 0).numpy(), *(x.long().numpy() for x in maps))


def _with_none(values: Tensor) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]
