"""The trainer of mask classification (Mask2Former, EoMT, PMT): `nnUNetTrainer_vit` with its loss and annealed masks.

It bears the name of the first of these networks.
"""

import functools
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist

from dinov3.eval.segmentation.mask_classification_loss import MaskClassificationLoss
from nnunetv2.training.nnUNetTrainer.m2f_config import M2FnnUNetConfig
from nnunetv2.training.nnUNetTrainer.m2f_utils import DenseToM2FTargetConverter
from nnunetv2.training.nnUNetTrainer.mask_classification_config import MaskClassificationConfig
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer_vit import nnUNetTrainer_vit
from nnunetv2.training.vit.loss_curves import TERMS, curve_names, draw_terms
from nnunetv2.training.vit.mask_annealing import mask_probabilities
from nnunetv2.training.vit.online_metrics import count_pixels
from nnunetv2.training.vit.schedule import EpochSchedule
from nnunetv2.training.vit.schedule_curves import draw_schedule, named_groups


class nnUNetTrainer_m2f(nnUNetTrainer_vit):
    """Trains a `MaskClassificationModel`; prediction and validation see the dense logits of its network.

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
        for name in curve_names():  # nnU-Net's logger takes only names that it knows
            self.logger.local_logger.my_fantastic_logging[name] = []

    @property
    def m2f_config(self) -> MaskClassificationConfig:
        """The resolved configuration."""
        return self.config

    def _build_loss(self) -> nn.Module:
        options = asdict(self.config.m2f_train)
        loss = MaskClassificationLoss(num_labels=self.label_manager.num_segmentation_heads, **options)
        return loss.to(self.device)

    def on_train_start(self) -> None:
        """Start as nnU-Net does, and draw how learning rates and masks will change."""
        super().on_train_start()
        if self.local_rank == 0 and isinstance(self.lr_scheduler, EpochSchedule):  # a subclass may have another
            draw_schedule(
                Path(self.output_folder) / "training_schedule.png",
                self.num_epochs,
                self.num_iterations_per_epoch,
                named_groups(self.optimizer),
                self.lr_scheduler.rates,
                self._mask_probabilities,
            )

    def _mask_probabilities(self, epoch: int, iteration: int) -> list[float]:
        """Per block with masks that are annealed away, the probability that they apply in an iteration of an epoch."""
        annealing = getattr(self.config.train, "mask_annealing", None)  # no key of Mask2Former, whose masks stay
        if annealing is None:
            return []
        step, num_steps = (n * self.num_iterations_per_epoch for n in (epoch, self.num_epochs))
        return mask_probabilities((step + iteration) / num_steps, annealing.start, annealing.end)

    def _prepare_step(self) -> None:
        super()._prepare_step()
        probabilities = self._mask_probabilities(self.current_epoch, self._iteration)
        if probabilities:
            self.plain_network.set_mask_probabilities(probabilities)

    def _training_loss(self, data: Tensor, target: Tensor) -> tuple[Tensor, dict[str, float]]:
        return self._loss_of(self.network(data), target)

    def _loss_of(self, queries: dict[str, Any], target: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The loss, of all layers or of the last one, and its three terms, which add up to it."""
        losses = self.loss.of_all_layers(queries, self.target_converter(target))
        with torch.no_grad():
            sums = torch.stack([self.loss.loss_total(_of_term(losses, term)) for term in TERMS]).tolist()
        return self.loss.loss_total(losses), dict(zip(TERMS, sums, strict=True))

    def validation_step(self, batch: dict) -> dict:
        """Compute the loss of a batch, as in training, and count true positives, false positives and false negatives.

        Args:
            batch: see `train_step`.

        Returns:
            `loss` and its terms by name, and per foreground class or region `tp_hard`, `fp_hard`, `fn_hard`.
        """
        data, target = self._images_and_target(batch)
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
            curves = {name: self.logger.get_value(name, step=None) for name in curve_names()}
            draw_terms(curves, Path(self.output_folder) / "progress_loss_terms.png")


def _of_term(losses: dict[str, Tensor], term: str) -> dict[str, Tensor]:
    """Those of all layers: names are the term, with or without the layer's number."""
    return {name: value for name, value in losses.items() if name.startswith(term)}
