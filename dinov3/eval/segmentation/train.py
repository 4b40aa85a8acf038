"""Training of a segmentor that predicts dense logits: the linear head."""

from typing import Any

from torch import Tensor, nn

from dinov3.eval.segmentation.config import SegmentationConfig
from dinov3.eval.segmentation.loss import MultiSegmentationLoss
from dinov3.eval.segmentation.models.utils.extent import resize
from dinov3.eval.segmentation.training import run_training
from dinov3.eval.segmentation.transforms import IGNORE_INDEX


def train_segmentation(backbone: nn.Module | None, config: SegmentationConfig) -> dict[str, Any]:
    """Train a ViT with a linear head, as `config` says, or go on with a training that was stopped.

    Accumulated batches and several processes give the gradient of one batch of all their images (batch norm apart,
    which takes the statistics of a batch, on GPUs those of all processes).

    Args:
        backbone: the ViT; None: the one that the configuration names.
        config: of the training.

    Returns:
        What `results.json` holds.

    Raises:
        ExperimentError: something in the configuration, the data set or the folder that a user can put right.
    """
    criterion = MultiSegmentationLoss(config.train.diceloss_weight, config.train.celoss_weight, IGNORE_INDEX)
    return run_training(backbone, config, criterion, train_step)


def train_step(model: nn.Module, batch: tuple[Tensor, Tensor], criterion: nn.Module) -> dict[str, Tensor]:
    """Compute the loss of a batch.

    Args:
        model: images to logits (B, num_classes, h, w), which are resized to the labels.
        batch: images (B, 3, H, W), and labels (B, H, W), int64.
        criterion: of logits (B, num_classes, H, W) and labels.

    Returns:
        `loss`.
    """
    images, labels = batch
    return {"loss": criterion(resize(model(images), labels.shape[-2:]), labels)}
