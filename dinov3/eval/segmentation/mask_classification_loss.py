"""The loss of mask classification (Cheng et al., "Mask2Former", 2022, https://arxiv.org/abs/2112.01527, section 3.3).

Every target mask is matched to a query, which is to predict its class and, at sampled points, its mask; unmatched
queries are to predict "no object". All layers of a decoder and all images are computed together.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from dinov3.eval.segmentation.hungarian_matcher import HungarianMatcher, Matches
from dinov3.eval.segmentation.point_sampler import sample
from dinov3.eval.segmentation.precision import without_autocast
from dinov3.eval.segmentation.target_batch import TargetBatch

Targets = Sequence[dict[str, Tensor]]


class PointSamples(NamedTuple):
    """Points of K targets: candidates, then random ones.

    Attributes:
        grid: (x, y), -1 to 1, (K, P, 2).
        truth: the target mask there, (K, P).
        weights: 0 where a point is ignored, otherwise 1, (K, P); None if none is.
    """

    grid: Tensor
    truth: Tensor
    weights: Tensor | None

    def of(self, targets: Tensor) -> "PointSamples":
        """Those of some targets, given by ascending indices."""
        if len(targets) == len(self.grid):
            return self
        return PointSamples(*(None if values is None else values[targets] for values in self))

    def gather(self, indices: Tensor) -> "PointSamples":
        """Those at some points, (K, P')."""
        grid = self.grid.gather(1, indices.unsqueeze(-1).expand(-1, -1, 2))
        return PointSamples(grid, *(None if values is None else values.gather(1, indices) for values in self[1:]))


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
        auxiliary_losses: whether `of_all_layers` computes the losses of the auxiliary layers too.
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
        auxiliary_losses: bool = True,
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
        self.auxiliary_losses = auxiliary_losses
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
            targets: per image `masks` (N, H, W), `labels` (N,), and perhaps `valid` (H, W), False where a pixel is
                ignored.
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
            `loss_mask`, `loss_dice` and `loss_cross_entropy`; with suffix `_i` those of auxiliary layer i, unless
            `auxiliary_losses` is false.

        Raises:
            ValueError: a label is not between 0 and `num_labels` - 1.
        """
        layers = [outputs, *(outputs["aux_outputs"] if self.auxiliary_losses else ())]
        with without_autocast(outputs["pred_masks"].device):
            masks = [layer["pred_masks"] for layer in layers]
            classes = [layer["pred_logits"] for layer in layers]
            batch = TargetBatch(targets, masks[0].device)
            self._check_labels(batch.labels)
            if batch.images.numel():
                matches = self.matcher(masks, classes, batch)
                mask_loss, dice_loss = self._mask_losses(masks, batch, matches)
            else:
                matches = Matches(*batch.images.new_zeros(2, len(layers), 0), batch.images)
                _average_over_processes(self.empty_weight.new_zeros(()))  # the other processes wait for this one
                # zeros with a gradient: under DDP every parameter must get one
                mask_loss = dice_loss = torch.stack([layer.float().sum() * 0 for layer in masks])
            class_loss = self._class_loss(torch.stack(classes).float(), batch, matches)
        suffixes = ["", *(f"_{i}" for i in range(len(layers) - 1))]
        values = zip(mask_loss.unbind(), dice_loss.unbind(), class_loss.unbind(), strict=True)
        names = ("loss_mask", "loss_dice", "loss_cross_entropy")
        return {
            f"{name}{suffix}": value
            for suffix, of_layer in zip(suffixes, values, strict=True)
            for name, value in zip(names, of_layer, strict=True)
        }

    def _check_labels(self, labels: Tensor) -> None:
        # the number of classes itself would be taken for "no object"
        wrong = labels[(labels < 0) | (labels >= self.num_labels)]
        if wrong.numel():
            found = ", ".join(map(str, wrong.unique().tolist()))
            raise ValueError(f"labels of targets must be from 0 to {self.num_labels - 1}, found {found}")

    def _mask_losses(self, masks: Sequence[Tensor], batch: TargetBatch, matches: Matches) -> tuple[Tensor, Tensor]:
        """Cross-entropy and Dice of the matched masks, (L,) each."""
        number = _average_over_processes(self.empty_weight.new_tensor(matches.queries.shape[1])).clamp(min=1)
        samples = self._draw(batch, matches.ranks)
        # layer by layer: the points of all would leave a CPU's cache and take a lot of a GPU's memory
        sums = [
            self._compare(layer.flatten(0, 1).index_select(0, queries).float().unsqueeze(1), samples.of(targets))
            for layer, queries, targets in zip(masks, matches.queries, matches.targets, strict=True)
        ]
        return (torch.stack(sums) / number).unbind(1)

    def _draw(self, batch: TargetBatch, ranks: Tensor) -> PointSamples:
        """Draw candidates and random points for every target, and sample the targets there, for all layers."""
        number, device = len(ranks), ranks.device
        candidates = torch.rand(number, self.num_candidates, 2, device=device)
        random = torch.rand(number, self.num_points - self.num_uncertain, 2, device=device)
        grid = 2 * torch.cat([candidates, random], dim=1)[ranks] - 1  # drawn in the reference's order
        grid, weights = batch.discard_ignored(grid, batch.images)
        return PointSamples(grid, sample(batch.masks.unsqueeze(1), grid).squeeze(1), weights)

    def _compare(self, masks: Tensor, samples: PointSamples) -> Tensor:
        """Sums of cross-entropy and Dice loss, (2,), of mask logits (K, 1, h, w)."""
        grid, truth, weights = self._choose(masks, samples)
        logits = sample(masks, grid).squeeze(1)
        errors, probabilities = F.softplus(logits) - logits * truth, logits.sigmoid()
        count: Tensor | int = errors.shape[1]
        if weights is not None:
            errors, probabilities, count = errors * weights, probabilities * weights, weights.sum(1).clamp(min=1)
        intersection = (probabilities * truth).sum(1)
        dice = 1 - (2 * intersection + 1) / (probabilities.sum(1) + truth.sum(1) + 1)
        return torch.stack([(errors.sum(1) / count).sum(), dice.sum()])

    @torch.no_grad()
    def _choose(self, masks: Tensor, samples: PointSamples) -> PointSamples:
        """Choose the most uncertain candidates for mask logits (K, 1, h, w), and all random points."""
        uncertainty = sample(masks, samples.grid[:, : self.num_candidates]).squeeze(1).abs_()
        if samples.weights is not None:
            uncertainty.masked_fill_(samples.weights[:, : self.num_candidates] == 0, torch.inf)
        # non-negative floats are ordered as their bits, and topk compares integers faster than floats, which may be
        # NaN: with floats the loss takes 1.05 to 1.1 times as long on a CPU
        bits = uncertainty.view(torch.int32)
        uncertain = bits.topk(self.num_uncertain, dim=1, largest=False, sorted=False).indices
        always = torch.arange(self.num_candidates, samples.grid.shape[1], device=masks.device)
        return samples.gather(torch.cat([uncertain, always.expand(len(masks), -1)], dim=1))

    def _class_loss(self, classes: Tensor, batch: TargetBatch, matches: Matches) -> Tensor:
        """Cross-entropy of the classes, (L,), divided by the sum of their weights, averaged over processes.

        Images that are ignored as a whole do not count.
        """
        counted = batch.has_valid_pixels().repeat_interleave(classes.shape[2])  # (B · Q,)
        classes = classes.flatten(1, 2)  # (L, B · Q, C + 1)
        wanted = torch.full(classes.shape[:-1], self.num_labels, dtype=torch.int64, device=classes.device)
        wanted.scatter_(1, matches.queries, batch.labels[matches.targets])
        losses = -classes.log_softmax(-1).gather(-1, wanted.unsqueeze(-1)).squeeze(-1)
        weights = self.empty_weight[wanted] * counted
        total = _average_over_processes(weights.sum(1))
        return (losses * weights).sum(1) / total.clamp(min=torch.finfo(weights.dtype).tiny)

    def loss_total(self, losses: dict[str, Tensor], log_fn: Callable[..., None] | None = None) -> Tensor:
        """Add up losses by their weights.

        Args:
            losses: by name, as `forward` or `of_all_layers` return them.
            log_fn: called with the name (`losses/train_…`), the value and `sync_dist=True` of every loss, and of the
                total, there with `prog_bar=True` too.

        Raises:
            ValueError: a name contains no known loss.
        """
        coefficients = {
            "mask": self.mask_coefficient,
            "dice": self.dice_coefficient,
            "cross_entropy": self.class_coefficient,
        }
        weights = []
        for name, value in losses.items():
            kind = next((kind for kind in coefficients if kind in name), None)
            if kind is None:
                raise ValueError(f"unknown loss {name!r}; names contain one of {', '.join(coefficients)}")
            weights.append(coefficients[kind])
            if log_fn is not None:
                log_fn(f"losses/train_{name}", value, sync_dist=True)
        values = torch.stack([*losses.values()])
        total = values @ values.new_tensor(weights)
        if log_fn is not None:
            log_fn("losses/train_loss_total", total, sync_dist=True, prog_bar=True)
        return total


def _average_over_processes(number: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(number)
        number = number / dist.get_world_size()
    return number
