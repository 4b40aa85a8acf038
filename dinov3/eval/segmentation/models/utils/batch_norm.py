"""Batch norm that also trains on maps of a single value per channel."""

import torch.nn.functional as F
from torch import Tensor, nn


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm of (B, C, h, w); where there is only one value per channel, it takes its running statistics.

    PyTorch's raises on one value in training: an image of 32 × 32 alone has such a map. Under distributed training it
    is converted like PyTorch's own.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, h, w)."""
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)
