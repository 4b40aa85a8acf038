"""nnU-Net's online metrics for dense logits."""

import numpy as np
import torch
from torch import Tensor

from nnunetv2.training.loss.dice import get_tp_fp_fn_tn
from nnunetv2.utilities.label_handling.label_handling import LabelManager


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
