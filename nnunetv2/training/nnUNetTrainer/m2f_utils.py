"""Dense labels ↔ the targets and predictions of mask classification, as nnU-Net's trainer has them."""

from collections.abc import Sequence

from torch import Tensor

from dinov3.eval.segmentation.m2f_targets import queries_to_logits, regions_to_m2f_targets, semantic_to_m2f_targets
from nnunetv2.training.vit.targets import full_size_target


class DenseToM2FTargetConverter:
    """Turns nnU-Net's targets into a mask per class.

    Args:
        ignore_label: pixels of this label are left out; None if there is none. With regions the last channel marks
            these pixels, unless it is None.
        regions: whether targets are regions, a channel each. Targets of more than one channel always are.
    """

    def __init__(self, ignore_label: int | None = -1, regions: bool = False) -> None:
        self.ignore_label = ignore_label
        self.regions = regions

    def __call__(self, target: Tensor | Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Convert a batch.

        Args:
            target: labels (B, 1, H, W) or (B, H, W), or regions (B, R, H, W); or a list that begins with them.

        Returns:
            Per image `masks` (N, H, W), `labels` (N,), and `valid` (H, W) where pixels are ignored (see
            `dinov3.eval.segmentation.m2f_targets`); N is 0 where nothing is labelled.
        """
        target = full_size_target(target)
        if self.regions:
            return regions_to_m2f_targets(target, self.ignore_label is not None)
        return semantic_to_m2f_targets(target, self.ignore_label)


def m2f_predictions_to_segmentation(
    pred_masks: Tensor, pred_logits: Tensor, target_size: Sequence[int], regions: bool = False
) -> Tensor:
    """Turn queries into the logits of which nnU-Net takes a softmax, or for regions a sigmoid.

    Args:
        pred_masks: logits of the masks, (B, Q, h, w).
        pred_logits: logits of the classes, (B, Q, C + 1), "no object" last.
        target_size: (H, W) of the image.
        regions: whether the classes are regions, which may overlap.

    Returns:
        (B, C, H, W), float32 (see `queries_to_logits`).
    """
    return queries_to_logits(pred_masks, pred_logits, target_size, regions)
