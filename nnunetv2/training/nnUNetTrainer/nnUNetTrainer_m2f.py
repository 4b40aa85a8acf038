"""The trainer of Mask2Former: `nnUNetTrainer_vit` with the loss of mask classification."""

import functools
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn
from torch import distributed as dist

from dinov3.eval.segmentation.mask_classification_loss import MaskClassificationLoss
from nnunetv2.training.loss.dice import get_tp_fp_fn_tn
from nnunetv2.training.nnUNetTrainer.m2f_config import M2FnnUNetConfig
from nnunetv2.training.nnUNetTrainer.m2f_utils import DenseToM2FTargetConverter
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer_vit import nnUNetTrainer_vit
from nnunetv2.utilities.label_handling.label_handling import LabelManager

TERMS = ("loss_mask", "loss_dice", "loss_cross_entropy")
PHASES = ("train", "val")


class nnUNetTrainer_m2f(nnUNetTrainer_vit):
    """Trains Mask2Former; prediction and validation see the dense logits of its network.

    Args:
        plans: plans, plain or derived.
        configuration: a 2D configuration of the plans.
        fold: number of the fold, or `all`.
        dataset_json: content of the data set's `dataset.json`.
        device: where to train.
        m2f_config_path: the experiment for plain plans (see `config_path` of `nnUNetTrainer_vit`).

    Attributes:
        m2f_config: the resolved configuration; the same as `config`.
        target_converter: nnU-Net's targets to masks and classes.
    """

    config_class: ClassVar[type] = M2FnnUNetConfig
    stored_config_class: ClassVar[type] = M2FnnUNetConfig
    default_config: ClassVar[str] = "m2f_default"

    @functools.wraps(nnUNetTrainer.__init__)
    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int | str,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008
        m2f_config_path: str | None = None,
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device, m2f_config_path)
        self.my_init_kwargs["m2f_config_path"] = self.my_init_kwargs.pop("config_path")
        labels = self.label_manager
        self.target_converter = DenseToM2FTargetConverter(labels.ignore_label, labels.has_regions)
        for name in _logged_names():  # nnU-Net's logger takes only names that it knows
            self.logger.local_logger.my_fantastic_logging[name] = []

    @property
    def m2f_config(self) -> M2FnnUNetConfig:
        """The resolved configuration."""
        return self.config

    def _build_loss(self) -> nn.Module:
        options = asdict(self.config.m2f_train)
        loss = MaskClassificationLoss(num_labels=self.label_manager.num_segmentation_heads, **options)
        return loss.to(self.device)

    def _training_loss(self, data: Tensor, target: Tensor) -> tuple[Tensor, dict[str, float]]:
        return self._loss_of(self.network(data), target)

    def _loss_of(self, queries: dict[str, Any], target: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The loss of all layers, and its three terms, which add up to it."""
        losses = self.loss.of_all_layers(queries, self.target_converter(target))
        with torch.no_grad():
            sums = torch.stack([self.loss.loss_total(_of_term(losses, term)) for term in TERMS]).tolist()
        return self.loss.loss_total(losses), dict(zip(TERMS, sums, strict=True))

    def validation_step(self, batch: dict) -> dict:
        """Compute the loss of a batch, as in training, and count what is right and wrong.

        Args:
            batch: `data` (B, C, H, W) and `target` (B, 1, H, W), or (B, R, H, W) for regions.

        Returns:
            `loss` and its terms by name, and per foreground class or region `tp_hard`, `fp_hard`, `fn_hard`.
        """
        data = batch["data"].to(self.device, non_blocking=True)
        target = batch["target"].to(self.device, non_blocking=True)
        network = self.plain_network
        queries = network.forward_queries(data)
        loss, terms = self._loss_of(queries, target)
        counts = count_pixels(network.dense_logits(queries, data.shape[-2:]), target, self.label_manager)
        return {"loss": loss.cpu().numpy(), **terms, **counts}

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """End the epoch as nnU-Net does, and log the terms of the loss."""
        super().on_train_epoch_end(train_outputs)
        self._log_terms("train", train_outputs)

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """End a validation epoch as nnU-Net does, and log the terms of the loss."""
        super().on_validation_epoch_end([{k: v for k, v in output.items() if k not in TERMS} for output in val_outputs])
        self._log_terms("val", val_outputs)

    def _log_terms(self, phase: str, outputs: list[dict]) -> None:
        means = torch.tensor([np.mean([output[term] for output in outputs]) for term in TERMS], dtype=torch.float64)
        if self.is_ddp:
            every: list[torch.Tensor | None] = [None] * dist.get_world_size()
            dist.all_gather_object(every, means)
            means = torch.stack(every).mean(0)
        for term, mean in zip(TERMS, means.tolist(), strict=True):
            self.logger.log(f"{phase}_{term}", mean, self.current_epoch)
            self.print_to_log_file(f"{phase}_{term} {mean:.4f}")

    def on_epoch_end(self) -> None:
        """End the epoch as nnU-Net does, and draw the terms of the loss beside its progress picture."""
        super().on_epoch_end()
        if self.local_rank == 0:
            curves = {name: self.logger.get_value(name, step=None) for name in _logged_names()}
            draw_terms(curves, Path(self.output_folder) / "progress_loss_terms.png")


def _logged_names() -> list[str]:
    return [f"{phase}_{term}" for phase in PHASES for term in TERMS]


def _of_term(losses: dict[str, Tensor], term: str) -> dict[str, Tensor]:
    """Those of all layers: names are the term, with or without the layer's number."""
    return {name: value for name, value in losses.items() if name.startswith(term)}


def count_pixels(logits: Tensor, target: Tensor, labels: LabelManager) -> dict[str, np.ndarray]:
    """Count true positives, false positives and false negatives of a batch, as nnU-Net's online evaluation does.

    Args:
        logits: (B, C, H, W).
        target: labels (B, 1, H, W), or regions (B, R, H, W), with the ignored pixels in a last channel if there are
            any.
        labels: of the data set.

    Returns:
        `tp_hard`, `fp_hard` and `fn_hard`, one number per foreground class or region.
    """
    if labels.has_regions:
        predicted = (logits > 0).float()  # a probability above one half
        ignored = target[:, -1:] != 0 if labels.has_ignore_label else None
        target = target[:, : logits.shape[1]].float()
    else:
        predicted = torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1)
        ignored = target == labels.ignore_label if labels.has_ignore_label else None
        target = target if ignored is None else target.masked_fill(ignored, 0)
    mask = None if ignored is None else (~ignored).float()
    counts = get_tp_fp_fn_tn(predicted, target, axes=[0, 2, 3], mask=mask)[:3]
    first = 0 if labels.has_regions else 1  # background is no foreground class
    return {
        name: count[first:].cpu().numpy() for name, count in zip(("tp_hard", "fp_hard", "fn_hard"), counts, strict=True)
    }


def draw_terms(curves: dict[str, list[float]], path: Path) -> None:
    """Draw the terms of the loss over the epochs, a panel per term.

    Args:
        curves: per phase and term (`train_loss_mask`, …) a value per epoch.
        path: of the picture, which is replaced as a whole.
    """
    figure, axes = plt.subplots(1, len(TERMS), figsize=(6 * len(TERMS), 5), layout="constrained")
    for panel, term in zip(axes, TERMS, strict=True):
        for phase, colour in zip(PHASES, ("b", "r"), strict=True):
            panel.plot(curves[f"{phase}_{term}"], color=colour, marker=".", label=phase)
        panel.set_title(f"{term}, weighted, sum of all layers", fontsize=12)
        panel.set_xlabel("epoch", fontsize=12)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.tick_params(labelsize=11)
        panel.legend(fontsize=12)
    temporary = path.with_suffix(".tmp")
    figure.savefig(temporary, format="png", dpi=80)
    plt.close(figure)
    os.replace(temporary, path)
