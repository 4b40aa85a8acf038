"""The table of DINOv3's ViTs. Nothing heavy is imported here.

Siméoni et al., "DINOv3", 2025, https://arxiv.org/abs/2508.10104.
"""

import re
from typing import NamedTuple

from dinov3.errors import did_you_mean


class Architecture(NamedTuple):
    """What distinguishes the models.

    Attributes:
        embed_dim: channels.
        depth: number of blocks.
        num_heads: attention heads.
        ffn_ratio: channels inside of the feed-forward networks, as a multiple of `embed_dim`.
        ffn_layer: kind of these networks.
        qkv_bias: whether queries and values have a bias.
        timm_name: timm's name, under which its hub has a copy of the weights; None if there is none.
        size: the size in words, for models with a copy of the weights on timm's hub.
        on_satellite: whether there are weights pretrained on satellite images.
    """

    embed_dim: int
    depth: int
    num_heads: int
    ffn_ratio: float
    ffn_layer: str
    qkv_bias: bool
    timm_name: str | None
    size: str | None
    on_satellite: bool = False


ARCHITECTURES = {
    "dinov3_vits16": Architecture(384, 12, 6, 4, "mlp", True, "vit_small_patch16_dinov3", "small"),
    "dinov3_vits16plus": Architecture(384, 12, 6, 6, "swiglu", True, "vit_small_plus_patch16_dinov3", "small_plus"),
    "dinov3_vitb16": Architecture(768, 12, 12, 4, "mlp", True, "vit_base_patch16_dinov3", "base"),
    "dinov3_vitl16": Architecture(1024, 24, 16, 4, "mlp", True, "vit_large_patch16_dinov3", "large", True),
    "dinov3_vitl16plus": Architecture(1024, 24, 16, 6, "swiglu", True, None, None),
    "dinov3_vith16plus": Architecture(1280, 32, 20, 6, "swiglu", True, "vit_huge_plus_patch16_dinov3", "huge_plus"),
    "dinov3_vit7b16": Architecture(4096, 40, 32, 3, "swiglu64", False, "vit_7b_patch16_dinov3", "7b", True),
}


def find_architecture(name: str | None) -> str:
    """Return the key in `ARCHITECTURES` of a model; names that end in 14 are taken for patches of 16 pixels.

    Raises:
        ValueError: there is no such model.
    """
    if name is not None and name not in ARCHITECTURES:
        corrected = re.sub(r"^(dinov3_vit\w+?)14", r"\g<1>16", name)
        name = corrected if corrected in ARCHITECTURES else name
    if name not in ARCHITECTURES:
        hint = did_you_mean(name or "", ARCHITECTURES)
        raise ValueError(f"unknown dino_hub {name!r}{hint}; allowed: {', '.join(ARCHITECTURES)}")
    return name
