"""ViT-Adapter on a frozen ViT (Chen et al., 2023, https://arxiv.org/abs/2205.08534), with extractors only.

image → convolutions: tokens at strides 8, 16, 32 → they look at the ViT's maps of four depths → maps at four strides
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dinov3.eval.segmentation.models.utils.batch_norm import BatchNorm2d
from dinov3.eval.segmentation.models.utils.extent import pad_to, resize, round_up
from dinov3.eval.segmentation.models.utils.freezing import freeze, trains
from dinov3.eval.segmentation.models.utils.ms_deform_attn import MSDeformAttn, pixel_centres

COARSEST_STRIDE = 32
STRIDES = (8, 16, 32)
GRID_STRIDE = 16  # of the ViT's maps


class SpatialPriorModule(nn.Module):
    """Convolutions that see what patches are too coarse for.

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


class DWConv(nn.Module):
    """A 3×3 convolution of every channel by itself, on each map of a sequence of tokens.

    Args:
        dim: channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """Map tokens (B, Σ h·w, dim) of maps with these (h, w) to the same shape."""
        flat = x.transpose(1, 2).split([height * width for height, width in shapes], dim=-1)
        maps = [self.dwconv(part.unflatten(-1, shape)) for part, shape in zip(flat, shapes, strict=True)]
        return torch.cat([_tokens(part) for part in maps], dim=1)


class ConvFFN(nn.Module):
    """A feed-forward network with a convolution inside.

    Args:
        dim: channels of input and result.
        hidden_dim: channels inside.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dwconv = DWConv(hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """Map tokens (B, Σ h·w, dim) of maps with these (h, w) to the same shape."""
        return self.fc2(F.gelu(self.dwconv(self.fc1(x), shapes)))


class Extractor(nn.Module):
    """The convolutions' tokens look at a map of the ViT.

    Args:
        dim: channels.
        num_heads: attention heads.
        n_points: points per head.
        deform_ratio: channels of the attention's values as a share of `dim`.
        with_cffn: whether a feed-forward network follows.
        cffn_ratio: its channels inside as a share of `dim`.
        drop_path: probability that the feed-forward network is skipped in training.
        with_cp: compute activations anew in the backward pass instead of keeping them.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        n_points: int,
        deform_ratio: float,
        with_cffn: bool,
        cffn_ratio: float,
        drop_path: float,
        with_cp: bool,
    ) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(dim, eps=1e-6)
        self.feat_norm = nn.LayerNorm(dim, eps=1e-6)
        self.attn = MSDeformAttn(dim, 1, num_heads, n_points, deform_ratio)
        self.with_cp = with_cp
        self.ffn: ConvFFN | None = None
        if with_cffn:
            self.ffn = ConvFFN(dim, int(dim * cffn_ratio))
            self.ffn_norm = nn.LayerNorm(dim, eps=1e-6)
            self.drop_path = DropPath(drop_path)

    def forward(
        self, query: Tensor, points: Tensor, features: Tensor, grid: tuple[int, int], shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Let tokens look at a map.

        Args:
            query: tokens of maps, (B, Σ h·w, dim).
            points: where they are, (1, Σ h·w, 1, 2), 0 to 1.
            features: tokens of the ViT, (B, n, dim).
            grid: (h, w) of these.
            shapes: (h, w) of the maps that `query` holds.

        Returns:
            Tokens like `query`.
        """
        arguments = (query, points, features, grid, shapes)
        if self.with_cp and self.training and torch.is_grad_enabled():
            return checkpoint(self._extract, *arguments, use_reentrant=False)
        return self._extract(*arguments)

    def _extract(
        self, query: Tensor, points: Tensor, features: Tensor, grid: tuple[int, int], shapes: list[tuple[int, int]]
    ) -> Tensor:
        query = query + self.attn(self.query_norm(query), points, self.feat_norm(features), [grid])
        if self.ffn is None:
            return query
        return query + self.drop_path(self.ffn(self.ffn_norm(query), shapes))


class Interaction(nn.Module):
    """An extractor, and further ones on the same map where wanted.

    Args:
        num_extra: number of further ones.
        extractor_options: see `Extractor`.
    """

    def __init__(self, num_extra: int, **extractor_options: int | float | bool) -> None:
        super().__init__()
        self.extractor = Extractor(**extractor_options)
        self.extra_extractors = nn.ModuleList(Extractor(**extractor_options) for _ in range(num_extra))

    def forward(self, query: Tensor, *where: Tensor | tuple | list) -> Tensor:
        """Map tokens as `Extractor` does."""
        for extractor in (self.extractor, *self.extra_extractors):
            query = extractor(query, *where)
        return query


class ViTAdapter(nn.Module):
    """Maps of four strides from an image and a plain ViT's tokens; the ViT itself is not part of it.

    Args:
        embed_dim: width of the ViT.
        in_channels: channels of the image.
        conv_inplane: channels of the convolutions at stride 4.
        n_points: points per attention head.
        deform_num_heads: attention heads.
        drop_path_rate: probability that a feed-forward network is skipped in training.
        with_cffn: whether feed-forward networks follow the attention.
        cffn_ratio: their channels inside, as a share of the ViT's width.
        deform_ratio: channels of the attention's values, as a share of the ViT's width.
        add_vit_feature: whether to add the ViT's maps to the results.
        use_extra_extractor: whether two more extractors follow the last interaction.
        with_cp: compute activations anew in the backward pass instead of keeping them.

    Raises:
        ValueError: a width that the attention heads cannot share.
    """

    def __init__(
        self,
        embed_dim: int,
        in_channels: int = 3,
        conv_inplane: int = 64,
        n_points: int = 4,
        deform_num_heads: int = 16,
        drop_path_rate: float = 0.3,
        with_cffn: bool = True,
        cffn_ratio: float = 0.25,
        deform_ratio: float = 0.5,
        add_vit_feature: bool = True,
        use_extra_extractor: bool = True,
        with_cp: bool = True,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.add_vit_feature = add_vit_feature
        self.level_embed = nn.Parameter(torch.randn(len(STRIDES), embed_dim))
        self.spm = SpatialPriorModule(in_channels, conv_inplane, embed_dim)
        options = {
            "dim": embed_dim,
            "num_heads": deform_num_heads,
            "n_points": n_points,
            "deform_ratio": deform_ratio,
            "with_cffn": with_cffn,
            "cffn_ratio": cffn_ratio,
            "drop_path": drop_path_rate,
            "with_cp": with_cp,
        }
        extra = [0, 0, 0, 2 if use_extra_extractor else 0]
        self.interactions = nn.ModuleList(Interaction(number, **options) for number in extra)
        self.up = nn.ConvTranspose2d(embed_dim, embed_dim, 2, stride=2)
        self.norm1, self.norm2, self.norm3, self.norm4 = (BatchNorm2d(embed_dim) for _ in range(4))
        for part in (self.spm, self.interactions, self.up):
            part.apply(_initialise)

    @staticmethod
    def covered(size: Sequence[int]) -> tuple[int, int]:
        """What the maps of an image of this (H, W) cover, in pixels: it is padded to multiples of 32."""
        return round_up(size, COARSEST_STRIDE)

    def adapt(self, x: Tensor, layers: Sequence[Tensor]) -> dict[str, Tensor]:
        """Map an image and tokens.

        Args:
            x: images, (B, C, H, W), H and W multiples of 32.
            layers: the patches of four depths of the ViT, (B, H/16 · W/16, embed_dim) each.

        Returns:
            `1` to `4`: maps (B, embed_dim, h, w) at strides 4, 8, 16 and 32.
        """
        shapes = [(x.shape[-2] // stride, x.shape[-1] // stride) for stride in STRIDES]
        grid = grid_of(x)
        c1, *coarser = self.spm(x)
        tokens = torch.cat([c + level for c, level in zip(coarser, self.level_embed, strict=True)], dim=1)
        points = pixel_centres(shapes, tokens)
        for interaction, layer in zip(self.interactions, layers, strict=True):
            tokens = interaction(tokens, points, layer, grid, shapes)
        flat = tokens.transpose(1, 2).split([h * w for h, w in shapes], dim=-1)
        c2, c3, c4 = (part.unflatten(-1, shape) for part, shape in zip(flat, shapes, strict=True))
        maps = [self.up(c2) + c1, c2, c3, c4]
        if self.add_vit_feature:
            vit_maps = [layer.transpose(1, 2).unflatten(-1, grid) for layer in layers]
            maps = [c + resize(vit, c.shape[-2:]) for c, vit in zip(maps, vit_maps, strict=True)]
        norms = (self.norm1, self.norm2, self.norm3, self.norm4)
        return {str(i): norm(c) for i, (norm, c) in enumerate(zip(norms, maps, strict=True), start=1)}


def grid_of(x: Tensor) -> tuple[int, int]:
    """(height, width) of the map of tokens that the adapter reads, for images (B, C, H, W)."""
    return x.shape[-2] // GRID_STRIDE, x.shape[-1] // GRID_STRIDE


def vit_tokens(backbone: nn.Module, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """The patches of some blocks, after the final norm, on the grid at stride 16.

    Args:
        backbone: a ViT with the reference's interface. If its patches are of another size than 16, it sees the image
            resized so that its grid is the one at stride 16.
        x: images, (B, C, H, W).
        layers: 0-based indices of the blocks.

    Returns:
        (B, H/16 · W/16, embed_dim) per block.
    """
    size = tuple(side * backbone.patch_size for side in grid_of(x))
    if size != tuple(x.shape[-2:]):
        x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
    return list(backbone.get_intermediate_layers(x, n=layers))


class DINOv3_Adapter(ViTAdapter):
    """A ViT and its adapter: images to maps of four strides.

    Args:
        backbone: a ViT with the reference's interface (see `dinov3.models.reference_interface`), also under peft.
        interaction_indexes: four 0-based blocks whose maps are read.
        pretrain_size: not read; kept for the reference's callers.
        conv_inplane: this and the following ones up to `with_cp`: see `ViTAdapter`.
        n_points: see there.
        deform_num_heads: see there.
        drop_path_rate: see there.
        init_values: not read; kept for the reference's callers.
        with_cffn: see there.
        cffn_ratio: see there.
        deform_ratio: see there.
        add_vit_feature: see there.
        use_extra_extractor: see there.
        with_cp: see there.
        lora_enabled: keep the adapters' matrices (`lora_`) of the ViT trainable, and nothing else of it.
        freeze_backbone: without adapters: stop the training of the ViT.

    Raises:
        ValueError: not four blocks, or a width that the attention heads cannot share.
    """

    def __init__(
        self,
        backbone: nn.Module,
        interaction_indexes: Sequence[int] = (9, 19, 29, 39),
        pretrain_size: int = 512,
        conv_inplane: int = 64,
        n_points: int = 4,
        deform_num_heads: int = 16,
        drop_path_rate: float = 0.3,
        init_values: float = 0.0,
        with_cffn: bool = True,
        cffn_ratio: float = 0.25,
        deform_ratio: float = 0.5,
        add_vit_feature: bool = True,
        use_extra_extractor: bool = True,
        with_cp: bool = True,
        lora_enabled: bool = False,
        freeze_backbone: bool = True,
    ) -> None:
        if len(interaction_indexes) != 4:
            raise ValueError(f"the adapter needs four blocks, found {list(interaction_indexes)}")
        super().__init__(
            backbone.embed_dim,
            backbone.patch_embed.proj.weight.shape[1],
            conv_inplane,
            n_points,
            deform_num_heads,
            drop_path_rate,
            with_cffn,
            cffn_ratio,
            deform_ratio,
            add_vit_feature,
            use_extra_extractor,
            with_cp,
        )
        self.backbone = backbone
        self.interaction_indexes = list(interaction_indexes)
        self.patch_size: int = backbone.patch_size
        freeze(backbone, lora_enabled, freeze_backbone)
        self.train(self.training)

    def train(self, mode: bool = True) -> "DINOv3_Adapter":
        """Set the training mode; a backbone of which nothing trains stays in evaluation mode."""
        super().train(mode)
        if not trains(self.backbone):
            self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images.

        Args:
            x: (B, C, H, W). Sides that are no multiples of 32 are padded.

        Returns:
            `1` to `4`: maps (B, embed_dim, h, w) at strides 4, 8, 16 and 32 of the padded image.
        """
        x = pad_to(x, self.covered(x.shape[-2:]))
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains(self.backbone)):
            layers = vit_tokens(self.backbone, x, self.interaction_indexes)
        return self.adapt(x, layers)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, MSDeformAttn):
        module.reset_parameters()
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
