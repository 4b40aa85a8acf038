"""The linear probe: a linear classifier of every patch.

Siméoni et al., "DINOv3", 2025, https://arxiv.org/abs/2508.10104.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dinov3.eval.segmentation.models.utils.batch_norm import BatchNorm2d
from dinov3.eval.segmentation.models.utils.extent import resize


def linear_probe(
    channels: int, num_classes: int, dropout: float, use_batchnorm: bool = True
) -> tuple[nn.Module, nn.Dropout2d, nn.Conv2d]:
    """The layers of a linear probe on a feature map: batch norm, dropout and a 1×1 convolution.

    Args:
        channels: channels of the feature map.
        num_classes: number of classes.
        dropout: probability that a channel is dropped in training.
        use_batchnorm: whether to normalise the feature map; otherwise the first layer does nothing.
    """
    classifier = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)
    return BatchNorm2d(channels) if use_batchnorm else nn.Identity(), nn.Dropout2d(dropout), classifier


class LinearHead(nn.Module):
    """Batch norm and a 1×1 convolution on concatenated maps.

    Args:
        in_channels: channels of every map.
        n_output_channels: number of classes.
        use_batchnorm: whether to normalise the concatenated maps.
        use_cls_token: whether every map comes with a class token, (B, C), which is concatenated to each of its pixels.
        dropout: probability that a channel is dropped in training.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        n_output_channels: int,
        use_batchnorm: bool = True,
        use_cls_token: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        channels = sum(in_channels) * (2 if use_cls_token else 1)
        self.use_cls_token = use_cls_token
        self.batchnorm_layer, self.dropout, self.conv = linear_probe(
            channels, n_output_channels, dropout, use_batchnorm
        )

    def forward(self, inputs: Sequence[Tensor | tuple[Tensor, Tensor]]) -> Tensor:
        """Map maps (B, C_i, h_i, w_i), or pairs of map and class token, to logits at the first one's size."""
        return self.conv(self.batchnorm_layer(self.dropout(self._stack(inputs))))

    def predict(
        self, inputs: Sequence[Tensor | tuple[Tensor, Tensor]], rescale_to: Sequence[int] = (512, 512)
    ) -> Tensor:
        """Map maps as `forward` does, without dropout, to logits (B, n_output_channels, *rescale_to)."""
        logits = self.conv(self.batchnorm_layer(self._stack(inputs)))
        return resize(logits, rescale_to)

    def _stack(self, inputs: Sequence[Tensor | tuple[Tensor, Tensor]]) -> Tensor:
        maps = []
        for entry in inputs:
            if self.use_cls_token:
                patches, token = entry
                entry = torch.cat([patches, token[:, :, None, None].expand(-1, -1, *patches.shape[-2:])], dim=1)
            maps.append(entry)
        size = maps[0].shape[-2:]
        resized = [resize(x, size) for x in maps[1:]]
        return torch.cat([maps[0], *resized], dim=1)
