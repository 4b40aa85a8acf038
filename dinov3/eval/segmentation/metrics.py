"""Metrics of segmentation, of the whole data set or averaged over images.

Labels are taken as they are: where 0 means "unlabelled", the transforms have already renumbered them
(`dinov3.eval.segmentation.transforms.ReduceZeroLabel`).
"""

from typing import Any

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix
from torchmetrics.functional.classification import multiclass_confusion_matrix

PER_CLASS = ("IoU", "Dice", "Fscore", "Precision", "Recall")
# `mAcc`, the mean accuracy of the classes, is their mean recall
MEANS = {"mAcc": "Recall"} | {f"m{name}": name for name in PER_CLASS}


def calculate_segmentation_metrics(confusion_matrix: Tensor, beta: float = 1.0) -> dict[str, Tensor]:
    """Metrics of counted pixels.

    Args:
        confusion_matrix: pixels by true and predicted class, (…, C, C).
        beta: weight of the recall in the F-score.

    Returns:
        `aAcc`, the share of pixels that are right, (…). Per class, (…, C): `IoU`, `Dice`, `Fscore`, `Precision` and
        `Recall`, NaN where there is nothing to divide by (IoU, Dice and F-score: the class is neither labelled nor
        predicted; precision: not predicted; recall: not labelled). Their means over the other classes, (…): `mIoU`,
        `mAcc`, `mDice`, `mFscore`, `mPrecision` and `mRecall`. All are float64, from 0 to 1, on the CPU.
    """
    counts = confusion_matrix.cpu().to(torch.float64)
    right = counts.diagonal(dim1=-2, dim2=-1)
    labelled, predicted = counts.sum(-1), counts.sum(-2)
    per_class = {
        "IoU": right / (labelled + predicted - right),
        "Dice": 2 * right / (labelled + predicted),
        "Fscore": (1 + beta**2) * right / (beta**2 * labelled + predicted),
        "Precision": right / predicted,
        "Recall": right / labelled,
    }
    means = {name: per_class[of].nanmean(-1) for name, of in MEANS.items()}
    return {"aAcc": right.sum(-1) / labelled.sum(-1), **means, **per_class}


class SegmentationMetrics(MulticlassConfusionMatrix):
    """Metrics of the pixels of all images together, summed over processes by torchmetrics.

    Args:
        num_classes: C.
        ignore_index: label of pixels that do not count.
        beta: weight of the recall in the F-score.
        keywords: of `torchmetrics.Metric`.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255, beta: float = 1.0, **keywords: Any) -> None:
        super().__init__(num_classes, ignore_index=ignore_index, validate_args=False, **keywords)
        self.beta = beta

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count the pixels of a batch.

        Args:
            preds: predicted classes, (B, H, W), or scores of the classes, (B, C, H, W).
            target: labels, (B, H, W).

        Raises:
            ValueError: a label that is no class.
        """
        check_labels(target, self.num_classes, self.ignore_index)
        super().update(preds.to(self.device), target.to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """Return what `calculate_segmentation_metrics` does, and the `confusion_matrix`."""
        return {**calculate_segmentation_metrics(self.confmat, self.beta), "confusion_matrix": self.confmat.cpu()}


class PerImageSegmentationMetrics(SegmentationMetrics):
    """Metrics of every image for itself, averaged over the images that have them (not NaN).

    The confusion matrix is still that of all images.

    Args:
        num_classes: C.
        ignore_index: label of pixels that do not count.
        beta: weight of the recall in the F-score.
        keywords: of `torchmetrics.Metric`.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255, beta: float = 1.0, **keywords: Any) -> None:
        super().__init__(num_classes, ignore_index, beta, **keywords)
        names = calculate_segmentation_metrics(torch.zeros(num_classes, num_classes))
        self._names, self._sizes = list(names), [value.numel() for value in names.values()]
        for state in ("sums", "numbers"):
            self.add_state(state, torch.zeros(sum(self._sizes), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count the pixels of a batch, and measure each of its images; see `SegmentationMetrics.update`."""
        super().update(preds, target)
        for image, labels in zip(preds.to(self.device), target.to(self.device), strict=True):
            counts = multiclass_confusion_matrix(
                image[None], labels[None], self.num_classes, ignore_index=self.ignore_index, validate_args=False
            )
            values = torch.cat([v.flatten() for v in calculate_segmentation_metrics(counts, self.beta).values()])
            self.sums += values.nan_to_num(0).to(self.sums)
            self.numbers += (~values.isnan()).to(self.numbers)

    def compute(self) -> dict[str, Tensor]:
        """Return the averages, named as in `calculate_segmentation_metrics`, and the `confusion_matrix`."""
        values = (self.sums / self.numbers).cpu().split(self._sizes)
        averages = {name: v if name in PER_CLASS else v[0] for name, v in zip(self._names, values, strict=True)}
        return {**averages, "confusion_matrix": self.confmat.cpu()}


def check_labels(labels: Tensor, num_classes: int, ignore_index: int) -> None:
    """Check that labels are classes.

    Raises:
        ValueError: names the values that are not.
    """
    wrong = labels[((labels < 0) | (labels >= num_classes)) & (labels != ignore_index)]
    if wrong.numel():
        found = ", ".join(str(value) for value in wrong.unique().tolist()[:10])
        raise ValueError(f"labels must be from 0 to {num_classes - 1}, or {ignore_index} (ignored), found {found}")
