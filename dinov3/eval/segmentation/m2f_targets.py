"""Dense labels to the targets of mask classification, and queries back to dense logits.

Mask classification: Cheng et al., "MaskFormer", 2021, https://arxiv.org/abs/2107.06278, section 3.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dinov3.eval.segmentation.precision import without_autocast

Target = dict[str, Tensor]


def semantic_to_m2f_targets(semantic_mask: Tensor, ignore_label: int | None = 255) -> list[Target] | Target:
    """Turn dense labels into a mask per class.

    Args:
        semantic_mask: labels (B, H, W) or (B, 1, H, W), or of one image (H, W); or regions, which may overlap,
            (B, R, H, W): not 0 inside.
        ignore_label: pixels of this label belong to no class and have no effect. None if there is none. If there is
            one, the last channel of regions is not a region but marks these pixels.

    Returns:
        Per image `masks` (N, H, W), float32, 0 or 1; `labels` (N,), int64: the class, or the region's channel; and, if
        there are ignored pixels, `valid` (H, W), False there. N counts the classes that are in the image, background
        included. One label map (H, W) gives this dictionary itself, more give a list.

    Raises:
        ValueError: another number of dimensions.
    """
    if semantic_mask.ndim == 2:
        return semantic_to_m2f_targets(semantic_mask[None], ignore_label)[0]
    if semantic_mask.ndim not in (3, 4):
        raise ValueError(f"expected labels (H, W), (B, H, W) or (B, channels, H, W), got {tuple(semantic_mask.shape)}")
    semantic_mask = semantic_mask.to(torch.int64)  # so that any label can be compared
    if semantic_mask.ndim == 4 and semantic_mask.shape[1] > 1:
        return regions_to_m2f_targets(semantic_mask, ignore_label is not None)
    images = semantic_mask if semantic_mask.ndim == 3 else semantic_mask[:, 0]
    return [_in_float(label_target(image, ignore_label)) for image in images]


def label_target(labels: Tensor, ignore_label: int | None = 255) -> Target:
    """Turn the labels of one image into a mask per class.

    Args:
        labels: (H, W), whole numbers.
        ignore_label: see `semantic_to_m2f_targets`.

    Returns:
        See `semantic_to_m2f_targets`, but with masks that are bool: a quarter of the memory.
    """
    present = _values_of(labels)
    classes = present if ignore_label is None else present[present != ignore_label]
    target = {"masks": labels == classes.to(labels.dtype).view(-1, 1, 1), "labels": classes}
    return target if len(classes) == len(present) else {**target, "valid": labels != ignore_label}


def _values_of(labels: Tensor) -> Tensor:
    low, high = (int(end) for end in labels.aminmax())
    if high - low > labels.numel():  # too large to be counted
        return labels.unique().to(torch.int64)
    return (labels - low).flatten().bincount().nonzero().flatten() + low  # unique() sorts all pixels


def _in_float(target: Target) -> Target:
    return {**target, "masks": target["masks"].to(torch.float32)}


def regions_to_m2f_targets(regions: Tensor, last_is_ignored: bool = False) -> list[dict[str, Tensor]]:
    """Turn regions, which may overlap, into a mask for each.

    Args:
        regions: (B, R, H, W): not 0 inside. One channel is a region too.
        last_is_ignored: whether the last channel is not a region but marks pixels that have no effect.

    Returns:
        See `semantic_to_m2f_targets`.

    Raises:
        ValueError: another number of dimensions.
    """
    if regions.ndim != 4:
        raise ValueError(f"expected regions (B, channels, H, W), got {tuple(regions.shape)}")
    return [_region_target(image != 0, last_is_ignored) for image in regions]


def _region_target(regions: Tensor, last_is_ignored: bool) -> dict[str, Tensor]:
    ignored = regions[-1] if last_is_ignored else torch.zeros_like(regions[0])
    regions = (regions[:-1] if last_is_ignored else regions) & ~ignored
    labels = regions.flatten(1).any(1).nonzero().flatten()
    return _with_valid({"masks": regions[labels].to(torch.float32), "labels": labels}, ~ignored)


def _with_valid(target: dict[str, Tensor], valid: Tensor) -> dict[str, Tensor]:
    return target if bool(valid.all()) else {**target, "valid": valid}


def queries_to_logits(
    pred_masks: Tensor, pred_logits: Tensor, target_size: Sequence[int] | None = None, regions: bool = False
) -> Tensor:
    """Turn queries into dense logits.

    For classes that exclude each other: log p with p_c ∝ Σ_q class_qc · mask_q, so that a softmax gives p. For regions:
    the logit of 1 − Π_q (1 − class_qr · mask_q), the probability that at least one query says so, so that a sigmoid
    gives it. class_q is the softmax over all classes and "no object", which is then left out; mask_q is a sigmoid.

    Args:
        pred_masks: logits of the masks, (B, Q, h, w).
        pred_logits: logits of the classes, (B, Q, C + 1), "no object" last.
        target_size: (H, W) to which the masks' logits are resized first; by default they keep their size.
        regions: whether the classes are regions, which may overlap.

    Returns:
        (B, C, H, W), float32.
    """
    with without_autocast(pred_masks.device):
        pred_masks = pred_masks.float()
        if target_size is not None and tuple(target_size) != tuple(pred_masks.shape[-2:]):
            pred_masks = F.interpolate(pred_masks, tuple(target_size), mode="bilinear", align_corners=False)
        # class by class: all products at once would not fit into memory
        if regions:
            classes = pred_logits.float().softmax(-1)[..., :-1]
            return torch.stack(list(_union_logits(pred_masks.sigmoid(), classes)), dim=1)
        # in logarithms, as the scores of an empty pixel are too small for float32
        log_masks, log_classes = F.logsigmoid(pred_masks), pred_logits.float().log_softmax(-1)[..., :-1]
        scores = [torch.logsumexp(log_masks + of_class[..., None, None], dim=1) for of_class in log_classes.unbind(-1)]
        return torch.stack(scores, dim=1).log_softmax(1)


def _union_logits(masks: Tensor, classes: Tensor) -> Iterator[Tensor]:
    limits = torch.finfo(masks.dtype)
    for number in range(classes.shape[-1]):
        product = masks * classes[..., number, None, None]
        log_none = torch.log1p(-product.clamp(max=1 - limits.eps)).sum(1)
        yield (-torch.expm1(log_none)).clamp(min=limits.tiny).log() - log_none
