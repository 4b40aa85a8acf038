"""Tiny segmentation trainings: their configuration, segmentors, batches and images on disk."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dinov3.eval.segmentation.config import SegmentationConfig, config_from
from dinov3.eval.segmentation.loss import MultiSegmentationLoss
from dinov3.eval.segmentation.m2f_targets import semantic_to_m2f_targets
from dinov3.eval.segmentation.mask_classification_loss import MaskClassificationLoss
from dinov3.eval.segmentation.models.from_config import segmentor_from_config
from dinov3.eval.segmentation.output_folder import claim
from dinov3.eval.segmentation.processes import make_accelerator
from dinov3.eval.segmentation.results import Evaluation
from dinov3.eval.segmentation.training_loop import TrainingLoop
from dinov3.eval.segmentation.transforms import collate_segmentation

SIDE, CLASSES = 64, 3
Values = dict[str, Any]


def merge(values: Values, changes: Values) -> Values:
    """Nested values with some changed."""
    merged = dict(values)
    for key, value in changes.items():
        merged[key] = merge(merged.get(key, {}), value) if isinstance(value, dict) else value
    return merged


def tiny_values(folder: Path, kind: str = "linear", **changes: Any) -> Values:
    """A configuration of six steps with an evaluation at 3 and 6 and checkpoints at 2, 4 and 6."""
    values = {
        "model": {"backbone": "dinov3", "backbone_size": "tiny", "pretrained": False},
        "bs": 2,
        "n_gpus": 1,
        "num_workers": 0,
        "seed": 7,
        "datasets": {"root": str(folder)},
        "decoder_head": {"type": kind, "num_classes": CLASSES, "num_queries": 5, "hidden_dim": 32},
        "scheduler": {"total_iter": 6, "constructor_kwargs": {"warmup_iters": 2}},
        "transforms": {"train": {"crop_size": [SIDE, SIDE], "flip_prob": 0.5}},
        "m2f_train": {"num_points": 64},
        "eval": {"mode": "whole", "reduce_zero_label": False, "eval_interval": 3},
        "checkpoint": {"interval": 2},
        "output_dir": str(folder / "run"),
    }
    if kind == "m2f":
        values["decoder_head"]["backbone_out_layers"] = "FOUR_EVEN_INTERVALS"
    return merge(values, changes)


def tiny_config(folder: Path, kind: str = "linear", **changes: Any) -> SegmentationConfig:
    """See `tiny_values`."""
    folder.mkdir(exist_ok=True)
    return config_from(tiny_values(folder, kind, **changes))


def criterion_of(config: SegmentationConfig) -> nn.Module:
    """The loss of a training."""
    if config.decoder_head.type == "linear":
        return MultiSegmentationLoss(config.train.diceloss_weight, config.train.celoss_weight)
    options = config.m2f_train
    return MaskClassificationLoss(**vars(options), num_labels=CLASSES)


class Cases(torch.utils.data.Dataset):
    """Random images with labels that can be learned from them."""

    def __init__(self, kind: str, number: int = 8) -> None:
        generator = torch.Generator().manual_seed(0)
        labels = torch.randint(CLASSES, (number, 4, 4), generator=generator)
        self.labels = labels.repeat_interleave(SIDE // 4, 1).repeat_interleave(SIDE // 4, 2)
        noise = torch.rand(number, 3, SIDE, SIDE, generator=generator)
        self.images = noise + nn.functional.one_hot(self.labels, CLASSES).movedim(-1, 1)
        self.kind = kind

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        labels = self.labels[index]
        return self.images[index], labels if self.kind == "linear" else semantic_to_m2f_targets(labels)


def make_loader(config: SegmentationConfig, start: int, processes: int = 1) -> DataLoader:
    """The batches after some steps: the images one after the other, again and again."""
    per_step = config.gradient_accumulation_steps * processes
    batches = range(start * per_step, config.scheduler.total_iter * per_step)
    indices = [[(config.bs * batch + i) % 8 for i in range(config.bs)] for batch in batches]
    return DataLoader(Cases(config.decoder_head.type), batch_sampler=indices, collate_fn=collate_segmentation)


def evaluation_of(value: float) -> Evaluation:
    """An evaluation with a given mIoU."""
    return Evaluation({"mIoU": value}, {"IoU": [value] * CLASSES}, torch.eye(CLASSES).long(), 1, 0.0, [])


def sum_of_weights(model: nn.Module, step: int) -> Evaluation:
    """An "evaluation" that any change of a weight changes; it disturbs the random numbers."""
    torch.rand(step)
    return evaluation_of(float(sum(parameter.detach().double().sum() for parameter in model.parameters())))


def build(config: SegmentationConfig) -> nn.Module:
    """The segmentor of a configuration, with the same weights each time."""
    torch.manual_seed(config.seed)
    return segmentor_from_config(config)


def make_loop(config: SegmentationConfig, train_step: Any, model: nn.Module | None = None) -> TrainingLoop:
    """The loop of a configuration in its folder."""
    accelerator: Accelerator = make_accelerator(config)
    folder = claim(config.output_dir, config, accelerator)
    return TrainingLoop(model or build(config), criterion_of(config), train_step, config, accelerator, folder)


def write_images(root: Path, number: int = 6) -> None:
    """Write images and labels as `images/` and `labels/` with the parts `train` and `val`."""
    cases = Cases("linear")
    for index in range(number):
        part = "train" if index < number - 2 else "val"
        image = cases.images[index].mul(127).byte().movedim(0, -1)
        for folder, values in (("images", image), ("labels", cases.labels[index].byte())):
            path = root / folder / part / f"case_{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values.numpy()).save(path)
