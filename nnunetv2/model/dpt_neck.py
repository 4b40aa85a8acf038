"""DPT's reassembling and fusion (Ranftl et al., 2021, https://arxiv.org/abs/2103.13413, section 3).

tokens of four blocks → class token read out → maps at 4, 2, 1 and 1/2 times the grid → fused from the deepest

Names in the state dict and their order are those of Hugging Face's `DPTNeck` (transformers 5.23), so that checkpoints
which hold them load: an optimizer's state goes by the order of the parameters.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunetv2.model.upsample import resize


def resizing_layer(channels: int, level: int) -> nn.Module:
    """What brings a map of the patch grid to the size of a level: 4, 2, 1 and 1/2 times the grid for levels 0 to 3."""
    if level < 2:
        factor = 4 >> level
        return nn.ConvTranspose2d(channels, channels, factor, stride=factor)
    return nn.Identity() if level == 2 else nn.Conv2d(channels, channels, 3, stride=2, padding=1)


class ReassembleLayer(nn.Module):
    """A map of the patch grid, projected and brought to the size of its level."""

    def __init__(self, channels: int, level: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(channels, channels, 1)
        self.resize = resizing_layer(channels, level)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to C channels of another size."""
        return self.resize(self.projection(x))


class ReassembleStage(nn.Module):
    """Tokens to maps of four sizes.

    Args:
        channels: width of the ViT.
        readout_type: what the class token does to the patches: `project`, `add` or `ignore`.
    """

    def __init__(self, channels: int, readout_type: str) -> None:
        super().__init__()
        self.readout_type = readout_type
        self.layers = nn.ModuleList(ReassembleLayer(channels, level) for level in range(4))
        if readout_type == "project":
            self.readout_projects = nn.ModuleList(
                nn.Sequential(nn.Linear(2 * channels, channels), nn.GELU()) for _ in range(4)
            )

    def forward(self, tokens: Sequence[Tensor], grid: tuple[int, int]) -> list[Tensor]:
        """Map four sequences of tokens (B, 1 + h·w, C), class token first, of a grid (h, w), to maps of C channels."""
        patches = [self._read_out(level, x[:, :1], x[:, 1:]) for level, x in enumerate(tokens)]
        maps = [x.transpose(1, 2).unflatten(2, grid) for x in patches]
        return [layer(x) for layer, x in zip(self.layers, maps, strict=True)]

    def _read_out(self, level: int, class_token: Tensor, patches: Tensor) -> Tensor:
        if self.readout_type == "project":
            return self.readout_projects[level](torch.cat([patches, class_token.expand_as(patches)], dim=-1))
        return patches + class_token if self.readout_type == "add" else patches


class ResidualUnit(nn.Module):
    """Two activated 3×3 convolutions beside the identity: (B, C, h, w) → (B, C, h, w).

    Args:
        channels: C.
        batch_norm: whether a batch norm follows each convolution; without one they have a bias.
    """

    def __init__(self, channels: int, batch_norm: bool) -> None:
        super().__init__()
        self.convolution1 = nn.Conv2d(channels, channels, 3, padding=1, bias=not batch_norm)
        self.convolution2 = nn.Conv2d(channels, channels, 3, padding=1, bias=not batch_norm)
        self.batch_norm1 = nn.BatchNorm2d(channels) if batch_norm else nn.Identity()
        self.batch_norm2 = nn.BatchNorm2d(channels) if batch_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Refine (B, C, h, w)."""
        hidden = self.batch_norm1(self.convolution1(x.relu()))
        return x + self.batch_norm2(self.convolution2(hidden.relu()))


class FusionLayer(nn.Module):
    """A skip connection added through a residual unit, then another unit, doubling, and a 1×1 convolution."""

    def __init__(self, channels: int, batch_norm: bool) -> None:
        super().__init__()
        self.projection = nn.Conv2d(channels, channels, 1)
        self.residual_layer1 = ResidualUnit(channels, batch_norm)
        self.residual_layer2 = ResidualUnit(channels, batch_norm)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Fuse (B, C, h, w) with a skip (B, C, h', w'), which is resized where it differs: (B, C, 2h, 2w)."""
        if skip is not None:
            if skip.shape != x.shape:  # a grid with an odd side
                skip = resize(skip, x.shape[-2:])
            x = x + self.residual_layer1(skip)
        x = self.residual_layer2(x)
        # pixel centres aligned: aligned corners move what lies at the border by half a patch
        return self.projection(resize(x, [2 * side for side in x.shape[-2:]]))


class FusionStage(nn.Module):
    """Four maps fused from the deepest up; `layers[0]` is the deepest level's."""

    def __init__(self, channels: int, batch_norm: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(FusionLayer(channels, batch_norm) for _ in range(4))
        # the deepest level has no skip connection: parameters that get no gradient would stop distributed training
        self.layers[0].residual_layer1 = nn.Identity()

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Fuse four maps (B, C, h_i, w_i), shallow to deep, to (B, C, 2 h_0, 2 w_0) for an even grid."""
        deepest, *fusions = self.layers
        x = deepest(maps[-1])
        for fusion, skip in zip(fusions, maps[-2::-1], strict=True):
            x = fusion(x, skip)
        return x


class DPTNeck(nn.Module):
    """Tokens of four blocks to one map at 8 times the patch grid.

    Args:
        in_channels: width of the ViT.
        hidden_size: channels of the fusion.
        readout_type: what the class token does: `project` (concatenated to each patch, projected), `add`, or `ignore`.
        batch_norm: whether the fusion has batch norm.
    """

    def __init__(self, in_channels: int, hidden_size: int, readout_type: str, batch_norm: bool) -> None:
        super().__init__()
        self.reassemble_stage = ReassembleStage(in_channels, readout_type)
        self.convs = nn.ModuleList(nn.Conv2d(in_channels, hidden_size, 3, padding=1, bias=False) for _ in range(4))
        self.fusion_stage = FusionStage(hidden_size, batch_norm)

    def forward(self, tokens: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """Fuse tokens.

        Args:
            tokens: four times (B, 1 + h·w, in_channels), class token first, shallow to deep.
            grid: (h, w).

        Returns:
            (B, hidden_size, 16 ⌈h/2⌉, 16 ⌈w/2⌉).
        """
        maps = self.reassemble_stage(tokens, grid)
        return self.fusion_stage([conv(x) for conv, x in zip(self.convs, maps, strict=True)])
