"""The loss of mask classification (Cheng et al., "Mask2Former", 2022, https://arxiv.org/abs/2112.01527, section 3.3).

Every target mask is assigned to a query, which is to give its class and, at sampled points, its mask; the other queries
are to say "no object". All layers of a decoder and all images are computed together.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from dinov3.eval.segmentation.hungarian_matcher import HungarianMatcher, Matches
from dinov3.eval.segmentation.target_batch import TargetBatch, sample_points

Targets = Sequence[dict[str, Tensor]]


class MaskClassificationLoss(nn.Module):
    """The loss of mask classification.

    Args:
        num_points: points per mask.
        oversample_ratio: this times `num_points` candidates are drawn, of which the most uncertain are kept.
        importance_sample_ratio: share of the points that are the most uncertain candidates; the others are random.
        mask_coefficient: weight of the cross-entropy of masks.
        dice_coefficient: weight of their Dice loss.
        class_coefficient: weight of the classes' cross-entropy.
        num_labels: number of classes.
        no_object_coefficient: weight of "no object" within the classes' cross-entropy.
    """

    def __init__(
        self,
        num_points: int,
        oversample_ratio: float,
        importance_sample_ratio: float,
        mask_coefficient: float,
        dice_coefficient: float,
        class_coefficient: float,
        num_labels: int,
        no_object_coefficient: float,
    ) -> None:
        super().__init__()
        self.num_points = num_points
        self.num_candidates = int(num_points * oversample_ratio)
        self.num_uncertain = int(num_points * importance_sample_ratio)
        self.mask_coefficient = mask_coefficient
        self.dice_coefficient = dice_coefficient
        self.class_coefficient = class_coefficient
        self.num_labels = num_labels
        self.eos_coef = no_object_coefficient
        self.matcher = HungarianMatcher(num_points, mask_coefficient, dice_coefficient, class_coefficient)
        weights = torch.ones(num_labels + 1)
        weights[-1] = no_object_coefficient
        self.register_buffer("empty_weight", weights)

    def forward(
        self, masks_queries_logits: Tensor, targets: Targets, class_queries_logits: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Compute the losses of one layer, without their weights.

        Args:
            masks_queries_logits: (B, Q, h, w).
            targets: per image `masks` (N, H, W), `labels` (N,), and perhaps `valid` (H, W), False where a pixel takes
                part in nothing.
            class_queries_logits: (B, Q, num_labels + 1), "no object" last.

        Returns:
            `loss_mask`, `loss_dice` and `loss_cross_entropy`.
        """
        output = {"pred_masks": masks_queries_logits, "pred_logits": class_queries_logits}
        return self.of_all_layers({**output, "aux_outputs": []}, targets)

    def of_all_layers(self, outputs: dict[str, Any], targets: Targets) -> dict[str, Tensor]:
        """Compute the losses of a decoder and of its auxiliary layers, without their weights.

        Args:
            outputs: `pred_masks`, `pred_logits`, and `aux_outputs`, a list of the same two.
            targets: see `forward`.

        Returns:
            `loss_mask`, `loss_dice` and `loss_cross_entropy`; with suffix `_i` those of auxiliary layer i.
        """
        layers = [outputs, *outputs["aux_outputs"]]
        with torch.autocast(outputs["pred_masks"].device.type, enabled=False):
            masks = torch.stack([layer["pred_masks"].float() for layer in layers])
            classes = torch.stack([layer["pred_logits"].float() for layer in layers])
            batch = TargetBatch(targets, masks.device)
            if not batch.images.numel():
                none = masks.flatten(1).sum(1) * 0  # zero, with a gradient: distributed training waits for one
                matches = Matches(*torch.zeros(4, 0, dtype=torch.int64, device=masks.device))
                mask_loss = dice_loss = none
                _average_over_processes(none.new_zeros(()))
            else:
                matches = self.matcher(masks, classes, batch)
                mask_loss, dice_loss = self._mask_losses(masks, batch, matches)
            class_loss = self._class_loss(classes, batch, matches)
        suffixes = ["", *(f"_{i}" for i in range(len(layers) - 1))]
        return {
            f"{name}{suffix}": value
            for i, suffix in enumerate(suffixes)
            for name, value in (
                ("loss_mask", mask_loss[i]),
                ("loss_dice", dice_loss[i]),
                ("loss_cross_entropy", class_loss[i]),
            )
        }

    def _mask_losses(self, masks: Tensor, batch: TargetBatch, matches: Matches) -> tuple[Tensor, Tensor]:
        """Cross-entropy and Dice of the matched masks, (L,) each."""
        matched = masks[matches.layers, matches.images, matches.queries].unsqueeze(1)  # (K, 1, h, w)
        with torch.no_grad():
            points, truth, weights = self._choose_points(matched, batch, matches)
        logits = sample_points(matched, points).squeeze(1)
        cross_entropy = ((F.softplus(logits) - logits * truth) * weights).sum(-1) / weights.sum(-1).clamp(min=1)
        probabilities, truth = logits.sigmoid() * weights, truth * weights
        both, either = (probabilities * truth).sum(-1), probabilities.sum(-1) + truth.sum(-1)
        dice = 1 - (2 * both + 1) / (either + 1)
        number = _average_over_processes(logits.new_tensor(len(logits) / len(masks))).clamp(min=1)
        per_layer = logits.new_zeros(2, len(masks))
        return (per_layer.index_add(1, matches.layers, torch.stack([cross_entropy, dice])) / number).unbind()

    def _choose_points(self, matched: Tensor, batch: TargetBatch, matches: Matches) -> tuple[Tensor, Tensor, Tensor]:
        """Where to compare each matched mask, (K, P, 2), what is to be there, and whether it counts, (K, P) each.

        Candidates and random points are drawn once per target, in the order in which the first layer's pairs name them,
        and are the same for all layers.
        """
        device, number = matched.device, len(batch.images)
        rows = torch.empty(number, dtype=torch.int64, device=device)
        rows[self._order(matches, number)] = torch.arange(number, device=device)
        candidates = torch.rand(number, self.num_candidates, 2, device=device)
        random = torch.rand(number, self.num_points - self.num_uncertain, 2, device=device)
        points = torch.cat([candidates, random], dim=1)[rows]  # (T, candidates + random, 2)
        truth = sample_points(batch.masks.unsqueeze(1), points).squeeze(1)
        weights = batch.weights(points, batch.images)
        uncertainty = sample_points(matched, points[matches.targets, : self.num_candidates]).squeeze(1).abs()
        uncertainty = uncertainty.masked_fill(weights[matches.targets, : self.num_candidates] == 0, torch.inf)
        uncertain = uncertainty.topk(self.num_uncertain, dim=1, largest=False, sorted=False).indices
        always = torch.arange(self.num_candidates, points.shape[1], device=device).expand(len(uncertain), -1)
        chosen = torch.cat([uncertain, always], dim=1)
        pair = matches.targets.unsqueeze(1)
        return points[pair, chosen], truth[pair, chosen], weights[pair, chosen]

    @staticmethod
    def _order(matches: Matches, number: int) -> Tensor:
        """All targets: first those of the first layer's pairs, then those that it leaves unmatched."""
        matched = matches.targets[matches.layers == 0]
        is_left = torch.ones(number, dtype=torch.bool, device=matched.device)
        is_left[matched] = False
        return torch.cat([matched, is_left.nonzero().flatten()])

    def _class_loss(self, classes: Tensor, batch: TargetBatch, matches: Matches) -> Tensor:
        """Cross-entropy of the classes, weighted, (L,)."""
        wanted = torch.full(classes.shape[:-1], self.num_labels, dtype=torch.int64, device=classes.device)
        wanted[matches.layers, matches.images, matches.queries] = batch.labels[matches.targets]
        losses = -classes.log_softmax(-1).gather(-1, wanted.unsqueeze(-1)).squeeze(-1)
        weights = self.empty_weight[wanted]
        return (losses * weights).flatten(1).sum(1) / weights.flatten(1).sum(1)

    def loss_total(self, losses: dict[str, Tensor], log_fn: Callable[..., None] | None = None) -> Tensor:
        """Add up losses by their weights.

        Args:
            losses: by name, as `forward` or `of_all_layers` return them.
            log_fn: called with the name (`losses/train_…`), the value and `sync_dist=True` of every loss, and of the
                total, there with `prog_bar=True` too.

        Raises:
            ValueError: a name that stands for no loss.
        """
        coefficients = {
            "mask": self.mask_coefficient,
            "dice": self.dice_coefficient,
            "cross_entropy": self.class_coefficient,
        }
        total = 0.0
        for name, value in losses.items():
            kind = next((kind for kind in coefficients if kind in name), None)
            if kind is None:
                raise ValueError(f"unknown loss {name!r}; names contain one of {', '.join(coefficients)}")
            if log_fn is not None:
                log_fn(f"losses/train_{name}", value, sync_dist=True)
            total = total + coefficients[kind] * value
        if log_fn is not None:
            log_fn("losses/train_loss_total", total, sync_dist=True, prog_bar=True)
        return total


def _average_over_processes(number: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(number)
        number = number / dist.get_world_size()
    return number
