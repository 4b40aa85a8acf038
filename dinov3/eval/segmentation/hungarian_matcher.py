"""Assign every target mask to the query that costs least (Carion et al., "DETR", 2020, section 3.1).

Costs at sampled points: Cheng et al., "Mask2Former", 2022, https://arxiv.org/abs/2112.01527, section 3.3.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from dinov3.eval.segmentation.target_batch import TargetBatch, sample_points


class Costs(NamedTuple):
    """Costs of every query for every target of its image, (L, B, Q, N), without weights.

    Images with fewer targets than N, the largest number, have values without a meaning at the end.
    """

    mask: Tensor
    dice: Tensor
    classes: Tensor


class Matches(NamedTuple):
    """What is assigned to what: K pairs, in the order of layers, images and queries; each attribute is (K,).

    Attributes:
        layers: number of the layer.
        images: number of the image.
        queries: number of the query.
        targets: number of the target among all of the batch.
    """

    layers: Tensor
    images: Tensor
    queries: Tensor
    targets: Tensor


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
    def forward(self, masks: Tensor, classes: Tensor, targets: TargetBatch) -> Matches:
        """Match.

        Args:
            masks: logits, (L, B, Q, h, w).
            classes: logits, (L, B, Q, C + 1).
            targets: of the B images.
        """
        # the reference draws image by image
        points = torch.cat([torch.rand(1, self.num_points, 2, device=masks.device) for _ in targets.counts])
        costs = self.costs(masks, classes, targets, points)
        total = sum(weight * cost for weight, cost in zip(self.coefficients, costs, strict=True))
        largest = torch.finfo(total.dtype).max
        total = total.nan_to_num(nan=largest, posinf=largest, neginf=largest).cpu().numpy()  # the one transfer
        pairs = [
            (layer, image, query, first + target)
            for layer, images in enumerate(total)
            for image, (first, count) in enumerate(zip(targets.first, targets.counts, strict=True))
            for query, target in zip(*linear_sum_assignment(images[image, :, :count]), strict=True)
        ]
        return Matches(*torch.tensor(pairs, dtype=torch.int64).view(-1, 4).to(masks.device).unbind(1))

    @staticmethod
    def costs(masks: Tensor, classes: Tensor, targets: TargetBatch, points: Tensor) -> Costs:
        """Compare all queries with all targets of their image.

        Args:
            masks: logits, (L, B, Q, h, w).
            classes: logits, (L, B, Q, C + 1).
            targets: of the B images.
            points: (x, y), 0 to 1, for every image, (B, P, 2).
        """
        layers, batch, queries = masks.shape[:3]
        logits = sample_points(masks.transpose(0, 1).flatten(1, 2), points)  # (B, L · Q, P)
        weights = targets.weights(points, torch.arange(batch, device=points.device)).unsqueeze(1)  # (B, 1, P)
        inside = (
            targets.by_image(sample_points(targets.masks.unsqueeze(1), points[targets.images]).squeeze(1)) * weights
        )
        counts = weights.sum(-1, keepdim=True).clamp(min=1)
        # cross-entropy of x and t is softplus(x) - x · t, so that a matrix product does for all pairs
        softplus = (F.softplus(logits) * weights).sum(-1, keepdim=True)
        mask_cost = (softplus - logits @ inside.transpose(1, 2)) / counts
        probabilities = logits.sigmoid() * weights
        both = probabilities @ inside.transpose(1, 2)
        either = probabilities.sum(-1, keepdim=True) + inside.sum(-1).unsqueeze(1)
        dice_cost = 1 - (2 * both + 1) / (either + 1)
        labels = targets.by_image(targets.labels)  # (B, N)
        wanted = labels[None, :, None].expand(layers, batch, queries, -1)
        class_cost = -classes.softmax(-1).gather(-1, wanted)
        shaped = (cost.unflatten(1, (layers, queries)).transpose(0, 1) for cost in (mask_cost, dice_cost))
        return Costs(*shaped, class_cost)
