"""DINOv3's ViTs by the reference's names.

Siméoni et al., "DINOv3", 2025, https://arxiv.org/abs/2508.10104. The weights are under the DINOv3 License.
"""

from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

from dinov3.hub.architectures import ARCHITECTURES
from dinov3.models.vision_transformer import DinoVisionTransformer
from dinov3.weights.fitting import fit_weights
from dinov3.weights.hub import download_hub_weights, download_url
from dinov3.weights.layouts import read_weights


class Weights(Enum):
    """The images that the weights were pretrained on."""

    LVD1689M = "LVD1689M"
    SAT493M = "SAT493M"


SHARED = {
    "pos_embed_rope_rescale_coords": 2,
    "pos_embed_rope_dtype": "fp32",
    "layerscale_init": 1e-5,
    "norm_layer": "layernormbf16",
    "n_storage_tokens": 4,
    "mask_k_bias": True,
}


def create_model(
    name: str,
    pretrained: bool = True,
    weights: Weights | str | Path = Weights.LVD1689M,
    check_hash: bool = False,
    **overrides: Any,
) -> DinoVisionTransformer:
    """Create one of DINOv3's ViTs.

    Args:
        name: its name in `ARCHITECTURES`.
        pretrained: whether to load weights; otherwise they are random.
        weights: which ones: of timm's copies on the hub, or a file in any layout that `dinov3.weights` reads, a folder
            or an index of such files (shards), or the address of one (`https://…`).
        check_hash: check what an address gives against the hash in its name.
        overrides: keywords of `DinoVisionTransformer`.

    Raises:
        ValueError: an unknown name, or weights that are not available or do not fit.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown model {name!r}; allowed: {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[name]
    of_satellite = architecture.on_satellite and weights is Weights.SAT493M
    options = {
        **SHARED,
        **{key: getattr(architecture, key) for key in ("embed_dim", "depth", "num_heads", "ffn_ratio", "ffn_layer")},
        "qkv_bias": architecture.qkv_bias,
        "untie_global_and_local_cls_norm": of_satellite or name == "dinov3_vit7b16",
        **overrides,
    }
    model = DinoVisionTransformer(**options)
    if pretrained:
        file = read_weights(_find_weights(name, weights, check_hash))
        model.load_state_dict(fit_weights(file, model).tensors)
    return model


def _find_weights(name: str, weights: Weights | str | Path, check_hash: bool) -> Path:
    if not isinstance(weights, Weights):
        return download_url(str(weights), check_hash) if str(weights).startswith(("http:", "https:")) else Path(weights)
    architecture = ARCHITECTURES[name]
    is_published = weights is Weights.LVD1689M or architecture.on_satellite
    if architecture.timm_name is None or not is_published:
        raise ValueError(f"there are no published weights {weights.name} of {name}: pass a file as weights")
    try:
        return download_hub_weights(f"timm/{architecture.timm_name}.{weights.name.lower()}")
    except ValueError as error:
        raise ValueError(f"{error}: pass a file as weights, or pretrained=False for random ones") from error


# The reference has a function per model: `create_model` without its first argument. ViT-L+ has no published weights.
dinov3_vits16 = partial(create_model, "dinov3_vits16")
dinov3_vits16plus = partial(create_model, "dinov3_vits16plus")
dinov3_vitb16 = partial(create_model, "dinov3_vitb16")
dinov3_vitl16 = partial(create_model, "dinov3_vitl16")
dinov3_vitl16plus = partial(create_model, "dinov3_vitl16plus")
dinov3_vith16plus = partial(create_model, "dinov3_vith16plus")
dinov3_vit7b16 = partial(create_model, "dinov3_vit7b16")
