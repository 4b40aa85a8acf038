"""Assign every target mask to the query that costs least (Carion et al., "DETR", 2020, section 3.1).

Costs at sampled points: Cheng et al., "Mask2Former", 2022, https://arxiv.org/abs/2112.01527, section 3.3.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from dinov3.eval.segmentation.point_sampler import PointSampler
from dinov3.eval.segmentation.target_batch import TargetBatch, sample

QUERIES_AT_ONCE = 50  # what is computed of them stays in the cache
STRETCHES = 64  # half to the power of this is far above the least float32


class Costs(NamedTuple):
    """Costs of every query for every target of its image, (L, B, Q, N), without weights.

    Images with fewer targets than N, the largest number, have values without a meaning at the end.
    """

    mask: Tensor
    dice: Tensor
    classes: Tensor


class Matches(NamedTuple):
    """What is assigned to what: per layer K pairs, in the order of the targets.

    Attributes:
        queries: number of the query among those of all images, (L, K).
        targets: number of the target among those of all images, (L, K), ascending.
        ranks: place of every target in the order of image and query in the first layer, (T,); those that this layer
            leaves unmatched, as there are more of them than queries, come last.
    """

    queries: Tensor
    targets: Tensor
    ranks: Tensor


class HungarianMatcher(nn.Module):
    """Assign every target to a query, for all layers of a decoder and all images at once.

    Args:
        num_points: points at which masks are compared.
        mask_coefficient: weight of the cross-entropy of masks.
        dice_coefficient: weight of their Dice.
        class_coefficient: weight of the class.
    """

    def __init__(
        self, num_points: int, mask_coefficient: float, dice_coefficient: float, class_coefficient: float
    ) -> None:
        super().__init__()
        self.num_points = num_points
        self.coefficients = Costs(mask_coefficient, dice_coefficient, class_coefficient)

    @torch.no_grad()
    def forward(self, masks: Sequence[Tensor], classes: Sequence[Tensor], targets: TargetBatch) -> Matches:
        """Match.

        Args:
            masks: logits per layer, (B, Q, h, w).
            classes: logits per layer, (B, Q, C + 1).
            targets: of the B images.
        """
        # the reference draws image by image
        points = torch.cat([torch.rand(1, self.num_points, 2, device=masks[0].device) for _ in targets.counts])
        costs = self.costs(masks, classes, targets, points)
        total = sum(weight * cost for weight, cost in zip(self.coefficients, costs, strict=True))
        largest = torch.finfo(total.dtype).max
        total = total.nan_to_num(nan=largest, posinf=largest, neginf=largest).cpu().numpy()  # the one transfer
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
        samples = TargetSamples(targets, points)
        mask_costs, dice_costs = samples.compare(masks)
        labels = targets.by_image(targets.labels).unsqueeze(1)  # (B, 1, N)
        class_costs = [
            -layer.float().softmax(-1).gather(-1, labels.expand(-1, layer.shape[1], -1)) for layer in classes
        ]
        return Costs(mask_costs, dice_costs, torch.stack(class_costs))


class TargetSamples:
    """The targets of a batch at points that are the same for all masks of an image, and for all layers.

    Args:
        targets: of B images.
        points: (x, y), 0 to 1, (B, P, 2).
    """

    def __init__(self, targets: TargetBatch, points: Tensor) -> None:
        self.grid = 2 * points - 1
        self.samplers: dict[torch.Size, list[PointSampler]] = {}  # by the size of the masks
        self.weights = targets.weights(self.grid, torch.arange(len(points), device=points.device))  # (B, P) or None
        weights = torch.ones_like(points[..., 0]) if self.weights is None else self.weights
        sampled = sample(targets.masks.unsqueeze(1), self.grid[targets.images]).squeeze(1)
        inside = targets.by_image(sampled).masked_fill_(weights.unsqueeze(1) == 0, 0)
        self.inside = torch.cat([inside, weights.unsqueeze(1)], dim=1)  # (B, N + 1, P)

    def compare(self, layers: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Costs of mask and of Dice for every layer, query and target, (L, B, Q, N) each, of logits (B, Q, h, w).

        The cross-entropy of logit x and target t is softplus(x) - x · t, so that one matrix product does for all pairs.
        softplus(x) is (x + |x|) / 2 - log max(σ(x), 1 - σ(x)).
        """
        sums = torch.stack([self._sums_of_layer(masks) for masks in layers])
        number = self.inside.shape[1]
        dots, dots_of_sigmoid, absolute, logs = sums.split([number, number, 1, 1], dim=2)
        (products, total), (both, probabilities) = (dots.split([number - 1, 1], 2) for dots in (dots, dots_of_sigmoid))
        inside, count = (part.sum(-1, keepdim=True) for part in self.inside.split([number - 1, 1], dim=1))
        logs = logs + (self.inside.shape[-1] - count) * math.log(2)  # it is log 1/2 where a point is ignored
        mask_costs = ((total + absolute) / 2 - logs - products) / count.clamp(min=1)
        dice_costs = 1 - (2 * both + 1) / (probabilities + inside + 1)
        return mask_costs.transpose(-1, -2), dice_costs.transpose(-1, -2)

    def _sums_of_layer(self, masks: Tensor) -> Tensor:
        size = masks.shape[-2:]
        if size not in self.samplers:
            self.samplers[size] = [PointSampler(of_image, size) for of_image in self.grid]
        sums = [
            torch.cat([self._sums(image, part.float()) for part in of_image.split(QUERIES_AT_ONCE)], dim=1)
            for image, of_image in enumerate(masks)
        ]
        return torch.stack(sums)

    def _sums(self, image: int, masks: Tensor) -> Tensor:
        """Sums over the points of an image, (2 N + 4, Q), of the logits of masks x, (Q, h, w).

        These are those of x · t for all N targets t and 1, those of σ(x) · t, that of |x|, and that of
        log max(σ(x), 1 - σ(x)). The logarithms, which take longest, are taken of products of `STRETCHES` terms, each of
        which is from 1/2 to 1.
        """
        x = self.samplers[masks.shape[-2:]][image](masks)  # (P, Q): changed in place, it is large
        if self.weights is not None:
            x.masked_fill_(self.weights[image].unsqueeze(-1) == 0, 0)
        dots, absolute = self.inside[image] @ x, _sum(x.abs())
        dots_of_sigmoid = self.inside[image] @ x.sigmoid_()
        logs = _sum_of_logs(x.sub_(0.5).abs_().add_(0.5))
        return torch.cat([dots, dots_of_sigmoid, absolute.unsqueeze(0), logs.unsqueeze(0)])


def _sum(values: Tensor) -> Tensor:
    """Sum (P, Q) over the points to (Q,), in stretches: PyTorch then adds whole rows."""
    whole, rest = _in_stretches(values)
    return whole.sum(0).sum(0) + rest.sum(0)


def _sum_of_logs(terms: Tensor) -> Tensor:
    """Sum the logarithms of (P, Q) over the points to (Q,)."""
    whole, rest = _in_stretches(terms)
    return whole.prod(0).log_().sum(0) + rest.prod(0).log_()


def _in_stretches(values: Tensor) -> tuple[Tensor, Tensor]:
    """Views of (P, Q): `STRETCHES` of the same length, and the fewer rows that are left."""
    length = len(values) // STRETCHES
    return values[: STRETCHES * length].unflatten(0, (STRETCHES, length)), values[STRETCHES * length :]


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
