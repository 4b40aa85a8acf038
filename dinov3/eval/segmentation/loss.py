"""The loss of dense logits, such as the linear head's: cross-entropy and Dice."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMOOTHING = 1.0  # pixels; keeps the Dice loss of tiny objects finite


class MultiSegmentationLoss(nn.Module):
    """Weighted sum of cross-entropy and soft Dice loss (Milletari et al., 2016, https://arxiv.org/abs/1606.04797).

    Every image has the same weight, and every pixel that is not ignored the same weight in the cross-entropy, whatever
    else is in the batch: the mean over the batches of several processes, or over accumulated ones, is the loss of one
    batch of all their images.

    Args:
        diceloss_weight: weight of the Dice loss.
        celoss_weight: weight of the cross-entropy.
        ignore_index: label of pixels that have no effect.

    Raises:
        ValueError: a negative weight, or two zeros.
    """

    def __init__(self, diceloss_weight: float = 0.0, celoss_weight: float = 1.0, ignore_index: int = 255) -> None:
        super().__init__()
        if min(diceloss_weight, celoss_weight) < 0 or diceloss_weight == celoss_weight == 0:
            raise ValueError(
                "diceloss_weight and celoss_weight must be at least 0, and one of them above, "
                f"found {diceloss_weight} and {celoss_weight}"
            )
        self.diceloss_weight, self.celoss_weight, self.ignore_index = diceloss_weight, celoss_weight, ignore_index

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compare logits (B, C, H, W) with labels (B, H, W), int64; returns a number, float32."""
        loss = logits.new_zeros((), dtype=torch.float32)
        if self.celoss_weight:
            loss = loss + self.celoss_weight * cross_entropy(logits, labels, self.ignore_index)
        if self.diceloss_weight:
            loss = loss + self.diceloss_weight * dice_loss(logits, labels, self.ignore_index)
        return loss


def cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """Cross-entropy, summed over the pixels that are not ignored and divided by the number of all pixels.

    Args:
        logits: (B, C, H, W).
        labels: (B, H, W), int64.
        ignore_index: label of pixels that have no effect.
    """
    return F.cross_entropy(logits.float(), labels, ignore_index=ignore_index, reduction="sum") / labels.numel()


def dice_loss(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """1 − Dice of the softmax, averaged over the classes that an image has, then over the images.

    An image without labels counts as 0.

    Args:
        logits: (B, C, H, W).
        labels: (B, H, W), int64.
        ignore_index: label of pixels that have no effect.
    """
    valid = (labels != ignore_index).unsqueeze(1)
    probabilities = logits.float().softmax(1) * valid
    truth = F.one_hot(labels.masked_fill(~valid.squeeze(1), 0), logits.shape[1]).movedim(-1, 1) * valid
    common = (probabilities * truth).sum((2, 3))
    labelled = truth.sum((2, 3))
    losses = 1 - (2 * common + SMOOTHING) / (probabilities.sum((2, 3)) + labelled + SMOOTHING)
    present = labelled > 0
    return ((losses * present).sum(1) / present.sum(1).clamp(min=1)).mean()
