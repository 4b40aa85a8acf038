"""The convolutional branch of ViT-Adapter (Chen et al., 2023, https://arxiv.org/abs/2205.08534, section 3.3)."""

from torch import Tensor, nn

from dinov3.eval.segmentation.models.utils.batch_norm import BatchNorm2d


class SpatialPriorModule(nn.Module):
    """Convolutions that keep the spatial detail for which patches are too coarse.

    Args:
        in_channels: channels of the image.
        inplanes: channels at stride 4; 2, 4 and 4 times as many at 8, 16 and 32.
        embed_dim: channels of the results.
    """

    def __init__(self, in_channels: int, inplanes: int, embed_dim: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *_conv_norm_act(in_channels, inplanes, stride=2),
            *_conv_norm_act(inplanes, inplanes, stride=1),
            *_conv_norm_act(inplanes, inplanes, stride=1),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.conv2 = nn.Sequential(*_conv_norm_act(inplanes, 2 * inplanes, stride=2))
        self.conv3 = nn.Sequential(*_conv_norm_act(2 * inplanes, 4 * inplanes, stride=2))
        self.conv4 = nn.Sequential(*_conv_norm_act(4 * inplanes, 4 * inplanes, stride=2))
        self.fc1 = nn.Conv2d(inplanes, embed_dim, 1)
        self.fc2 = nn.Conv2d(2 * inplanes, embed_dim, 1)
        self.fc3 = nn.Conv2d(4 * inplanes, embed_dim, 1)
        self.fc4 = nn.Conv2d(4 * inplanes, embed_dim, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Map images (B, C, H, W) to a map (B, embed_dim, H/4, W/4) and tokens (B, n, embed_dim) at 8, 16 and 32."""
        c1 = self.stem(x)
        c2 = self.conv2(c1)
        c3 = self.conv3(c2)
        c4 = self.conv4(c3)
        return self.fc1(c1), _tokens(self.fc2(c2)), _tokens(self.fc3(c3)), _tokens(self.fc4(c4))


def _conv_norm_act(in_channels: int, out_channels: int, stride: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
    return convolution, BatchNorm2d(out_channels), nn.ReLU(inplace=True)


def _tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)
