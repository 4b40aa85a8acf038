"""A training from its configuration to its results: data, segmentor, loop and report."""

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from dinov3.data.dataset import SegmentationDataset
from dinov3.data.loaders import find_pairs, make_eval_dataset, make_train_dataset, train_loader
from dinov3.errors import ExperimentError, in_one_line
from dinov3.eval.segmentation.checked_pairs import checked_pairs
from dinov3.eval.segmentation.checkpoints import FINAL, Checkpoints
from dinov3.eval.segmentation.config import SegmentationConfig
from dinov3.eval.segmentation.eval import evaluate_segmentation_model
from dinov3.eval.segmentation.figures import draw_examples
from dinov3.eval.segmentation.models.from_config import segmentor_from_config
from dinov3.eval.segmentation.output_folder import claimed
from dinov3.eval.segmentation.processes import make_accelerator
from dinov3.eval.segmentation.report import RESULTS, class_names_of, describe_evaluation, write_report
from dinov3.eval.segmentation.results import Evaluation
from dinov3.eval.segmentation.segmentor_checkpoint import load_segmentor
from dinov3.eval.segmentation.training_loop import TrainingLoop, TrainStep
from dinov3.eval.segmentation.training_text import log_circumstances, log_to_file
from dinov3.eval.segmentation.transforms import IGNORE_INDEX

LOG = "training.log"

logger = logging.getLogger(__name__)


def run_training(
    backbone: nn.Module | None, config: SegmentationConfig, criterion: nn.Module, train_step: TrainStep
) -> dict[str, Any]:
    """Train a segmentor, or go on with a training that was stopped.

    Args:
        backbone: the ViT; None: the one that the configuration names.
        config: of the training.
        criterion: the loss.
        train_step: computes the losses of a batch (see `TrainingLoop`).

    Returns:
        What `results.json` holds; that of an earlier run if it has finished this training.

    Raises:
        ExperimentError: something in the configuration, the data set or the folder that a user can put right.
    """
    accelerator = make_accelerator(config)
    with claimed(config, accelerator) as folder, log_to_file(folder / LOG, accelerator):
        if Checkpoints(folder, config.checkpoint.keep_last).is_finished():
            logger.info("%s holds a training that is finished, with its results in %s", folder, RESULTS)
            return _results_of(folder)
        model = _segmentor(backbone, config)
        log_circumstances(model, accelerator)
        train_data, val_data = _data(config, accelerator, folder)
        evaluate = partial(_evaluate, val_data, config, accelerator, folder)
        loop = TrainingLoop(model, criterion, train_step, config, accelerator, folder)
        last = loop.run(lambda step: train_loader(train_data, config, step, accelerator.num_processes), evaluate)
        if last is None or last.num_images < len(val_data):
            last = evaluate_segmentation_model(loop.segmentor, val_data, config, accelerator)
        details = {**describe_evaluation(loop.segmentor, config, folder / FINAL), "step": loop.step, "best": loop.best}
        if accelerator.is_main_process:
            write_report(last, folder, class_names_of(config), details)
            loop.checkpoints.finish()
        accelerator.wait_for_everyone()
        return _results_of(folder)


def _results_of(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExperimentError(
            f"{folder / RESULTS} of a finished training cannot be read ({in_one_line(error)}): evaluate its segmentor "
            f"again, by eval_only=true load_from={folder / FINAL} and another output_dir"
        ) from error


def _evaluate(
    dataset: SegmentationDataset,
    config: SegmentationConfig,
    accelerator: Accelerator,
    folder: Path,
    segmentor: nn.Module,
    step: int,
) -> Evaluation:
    """Evaluate the segmentor in the midst of its training, and draw examples."""
    limits = {"max_samples": config.eval.max_val_samples, "num_examples": config.eval.num_visualizations}
    evaluation = evaluate_segmentation_model(segmentor, dataset, config, accelerator, **limits)
    if evaluation.examples:
        path, class_names = folder / "predictions" / f"step_{step}.png", class_names_of(config)
        path.parent.mkdir(exist_ok=True)
        draw_examples(evaluation.examples, path, class_names, len(class_names), IGNORE_INDEX)
    metric = config.metric_to_save
    logger.info("Step %d: %s %.4f of %d images", step, metric, evaluation.metrics[metric], evaluation.num_images)
    return evaluation


def _data(
    config: SegmentationConfig, accelerator: Accelerator, folder: Path
) -> tuple[SegmentationDataset, SegmentationDataset]:
    """Find and check the images of training and validation."""
    found = find_pairs(config.datasets, config.seed)
    training, validation = (
        checked_pairs(pairs, title, config, accelerator, folder)
        for pairs, title in zip(found, ("training", "validation"), strict=True)
    )
    logger.info("%d images of training, %d of validation", len(training), len(validation))
    return make_train_dataset(training, config), make_eval_dataset(validation, config)


def _segmentor(backbone: nn.Module | None, config: SegmentationConfig) -> nn.Module:
    torch.manual_seed(config.seed)  # the same new weights on all processes
    model = segmentor_from_config(config, backbone)
    if config.load_from is not None:
        logger.info(load_segmentor(model, config.load_from, allow_other_classes=True))
    return model
