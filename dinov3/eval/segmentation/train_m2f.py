"""Training of a segmentor that predicts masks and their classes: Mask2Former."""

from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from dinov3.eval.segmentation.config import SegmentationConfig
from dinov3.eval.segmentation.m2f_targets import Target
from dinov3.eval.segmentation.mask_classification_loss import MaskClassificationLoss
from dinov3.eval.segmentation.training import run_training


def train_m2f_segmentation(backbone: nn.Module | None, config: SegmentationConfig) -> dict[str, Any]:
    """Train a ViT with ViT-Adapter and Mask2Former, as `config` says, or go on with a training that was stopped.

    The losses of masks are divided by the number of masks, that of classes by the sum of their weights. Both are
    averaged over processes, so that these give the gradient of one batch of all their images. Accumulated batches are
    each divided by their own: an image in a batch of few masks counts more than in one large batch.

    Args:
        backbone: the ViT; None: the one that the configuration names.
        config: of the training.

    Returns:
        What `results.json` holds.

    Raises:
        ExperimentError: something in the configuration, the data set or the folder that a user can put right.
    """
    criterion = MaskClassificationLoss(**asdict(config.m2f_train), num_labels=config.decoder_head.num_classes)
    return run_training(backbone, config, criterion, train_step_m2f)


def train_step_m2f(
    model: nn.Module, batch: tuple[Tensor, list[Target]], criterion: MaskClassificationLoss
) -> dict[str, Tensor]:
    """Compute the losses of a batch.

    Args:
        model: images to queries, with auxiliary outputs (see `Mask2FormerHead.forward`).
        batch: images (B, 3, H, W), and a target for each (see `SemanticToM2FTargets`).
        criterion: the loss.

    Returns:
        `loss`, the weighted sum over all layers, and `loss_mask`, `loss_dice` and `loss_cross_entropy` of the last one.
    """
    images, targets = batch
    losses = criterion.of_all_layers(model(images), targets)
    last_layer = {name: losses[name] for name in ("loss_mask", "loss_dice", "loss_cross_entropy")}
    return {"loss": criterion.loss_total(losses), **last_layer}
