"""Assign every target mask to the query of least cost (Carion et al., "DETR", 2020, section 3.1).

Costs at sampled points: Cheng et al., "Mask2Former", 2022, https://arxiv.org/abs/2112.01527, section 3.3.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from dinov3.eval.segmentation.point_sampler import PointSampler, sample
from dinov3.eval.segmentation.target_batch import TargetBatch

# all 100 leave a CPU's cache: for three classes the loss then takes 1.05 to 1.1 times as long, for 20 the same
QUERIES_AT_ONCE = 50


class Costs(NamedTuple):
    """Unweighted costs of every query for every target of its image, (L, B, Q, N).

    N is the largest number of targets; images with fewer have meaningless values at the end.
    """

    mask: Tensor
    dice: Tensor
    classes: Tensor


class Matches(NamedTuple):
    """Matched queries and targets: K pairs per layer, in the order of the targets.

    Attributes:
        queries: indices into the queries of all images, (L, K).
        targets: indices into the targets of all images, (L, K), ascending.
        ranks: place of every target in the first layer's order by image and query, (T,); targets that this layer
            leaves unmatched, because there are fewer queries, come last.
    """

    queries: Tensor
    targets: Tensor
    ranks: Tensor


class HungarianMatcher(nn.Module):
    """Assign every target to a query, for all layers of a decoder and all images at once.

    Args:
        num_points: points at which masks are compared.
        mask_coefficient: weight of the masks' cross-entropy.
        dice_coefficient: weight of the masks' Dice loss.
        class_coefficient: weight of the class probability.
    """

    def __init__(
        self, num_points: int, mask_coefficient: float, dice_coefficient: float, class_coefficient: float
    ) -> None:
        super().__init__()
        self.num_points = num_points
        self.coefficients = Costs(mask_coefficient, dice_coefficient, class_coefficient)

    @torch.no_grad()
    def forward(self, masks: Sequence[Tensor], classes: Sequence[Tensor], targets: TargetBatch) -> Matches:
        """Match queries and targets.

        Args:
            masks: logits per layer, (B, Q, h, w).
            classes: logits per layer, (B, Q, C + 1).
            targets: of the B images.
        """
        # one draw per image, in the order of the reference's random numbers
        points = torch.cat([torch.rand(1, self.num_points, 2, device=masks[0].device) for _ in targets.counts])
        costs = self.costs(masks, classes, targets, points)
        total = sum(weight * cost for weight, cost in zip(self.coefficients, costs, strict=True))
        largest = torch.finfo(total.dtype).max
        total = total.nan_to_num(nan=largest, posinf=largest, neginf=largest).cpu().numpy()  # the only transfer
        return Matches(*(part.to(masks[0].device) for part in _assign(total, targets)))

    @staticmethod
    def costs(masks: Sequence[Tensor], classes: Sequence[Tensor], targets: TargetBatch, points: Tensor) -> Costs:
        """Compare all queries with all targets of their image.

        Args:
            masks: logits per layer, (B, Q, h, w).
            classes: logits per layer, (B, Q, C + 1).
            targets: of the B images.
            points: (x, y), 0 to 1, for every image, (B, P, 2).
        """
        grid, weights = targets.discard_ignored(2 * points - 1, torch.arange(len(points), device=points.device))
        truth = targets.by_image(sample(targets.masks.unsqueeze(1), grid[targets.images]).squeeze(1))  # (B, N, P)
        weights = torch.ones_like(truth[:, :1]) if weights is None else weights.unsqueeze(1)
        sum_over_points = sum_by_parts if points.device.type == "cpu" else sum_at_once
        sums = sum_over_points(masks, grid, torch.cat([truth, weights], dim=1))

        products, softplus, intersection, probabilities = sums.split([truth.shape[1], 1] * 2, dim=2)
        area, count = truth.sum(-1, keepdim=True), weights.sum(-1, keepdim=True)
        softplus = softplus - (grid.shape[1] - count) * math.log(2)  # ignored points have added softplus(0)
        mask_costs = (softplus - products) / count.clamp(min=1)
        dice_costs = 1 - (2 * intersection + 1) / (probabilities + area + 1)
        labels = targets.by_image(targets.labels)[None, :, None].expand(len(masks), -1, masks[0].shape[1], -1)
        class_costs = -torch.stack([*classes]).float().softmax(-1).gather(-1, labels)
        return Costs(mask_costs.transpose(-1, -2), dice_costs.transpose(-1, -2), class_costs)


def sum_by_parts(masks: Sequence[Tensor], grid: Tensor, truth: Tensor) -> Tensor:
    """Sums over points from which the costs follow: the form for CPUs, whose caches hold a part of the queries.

    Args:
        masks: logits x per layer, (B, Q, h, w).
        grid: (x, y), -1 to 1 inside the masks, (B, P, 2).
        truth: targets t, and last the points' weights, (B, N + 1, P).

    Returns:
        The sums of x · t (N), softplus(x), σ(x) · t (N) and σ(x) over the points, (L, B, 2 N + 2, Q).
    """
    sizes = {layer.shape[-2:] for layer in masks}
    samplers = {size: [PointSampler(of_image, size) for of_image in grid] for size in sizes}
    sums = [
        torch.cat([_sum(sampler(part), of_image) for part in image.split(QUERIES_AT_ONCE)], dim=1)
        for layer in masks
        for sampler, image, of_image in zip(samplers[layer.shape[-2:]], layer, truth, strict=True)
    ]
    return torch.stack(sums).unflatten(0, (len(masks), -1))


def sum_at_once(masks: Sequence[Tensor], grid: Tensor, truth: Tensor) -> Tensor:
    """The same as `sum_by_parts` in few operations: the form for GPUs."""
    logits = torch.cat([sample(layer.float(), grid) for layer in masks], dim=1)  # (B, L · Q, P)
    return _sum(logits.transpose(1, 2), truth).unflatten(-1, (len(masks), -1)).movedim(2, 0)


def _sum(logits: Tensor, truth: Tensor) -> Tensor:
    """Sums over points, (…, 2 N + 2, Q), of logits x, (…, P, Q), which are overwritten, and truth, (…, N + 1, P).

    The cross-entropy of logit x and target t is softplus(x) - x · t, so that matrix products compare all pairs. As
    softplus(x) = -log σ(-x), and the Dice needs σ(x) = 1 - σ(-x), one exponential serves both; with `softplus` itself
    the loss takes 1.1 to 1.2 times as long on a CPU. σ(-x) is kept above 0, so that softplus(x) ends at 87.
    """
    products = truth[..., :-1, :] @ logits
    opposite = logits.neg_().sigmoid_()
    probabilities = truth.sum(-1, keepdim=True) - truth @ opposite
    softplus = -opposite.clamp_(min=torch.finfo(opposite.dtype).tiny).log_().sum(-2, keepdim=True)
    return torch.cat([products, softplus, probabilities], dim=-2)


def _assign(costs: np.ndarray, targets: TargetBatch) -> Matches:
    """Assign by costs (L, B, Q, N)."""
    queries = costs.shape[2]
    layers = [
        [
            (image * queries + query, first + target)
            for image, (first, count) in enumerate(zip(targets.first, targets.counts, strict=True))
            for query, target in zip(*linear_sum_assignment(images[image, :, :count]), strict=True)
        ]
        for images in costs
    ]
    order = [target for _, target in layers[0]]
    order += sorted(set(range(sum(targets.counts))) - set(order))
    pairs = torch.tensor([sorted(pairs, key=lambda pair: pair[1]) for pairs in layers])
    return Matches(*pairs.unbind(-1), torch.tensor(order).argsort())
