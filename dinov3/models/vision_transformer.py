"""The reference's `DinoVisionTransformer`, as a thin layer over timm's DINOv3 (class `Eva`).

Architecture: Siméoni et al., "DINOv3", 2025, https://arxiv.org/abs/2508.10104.
"""

import logging
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dinov3.models.reference_interface import ReferenceInterface
from dinov3.models.timm_dinov3 import (
    PERIODS,
    QKV_BIAS,
    has_query_bias,
    match_reference,
    reference_to_timm,
    timm_to_reference,
)

logger = logging.getLogger(__name__)

NORM_EPSILON = {"layernorm": 1e-6, "layernormbf16": 1e-5}
SWIGLU_MULTIPLES = {"swiglu": 8, "swiglu64": 64}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
CHOICES = {
    "norm_layer": tuple(NORM_EPSILON),
    "ffn_layer": ("mlp", *SWIGLU_MULTIPLES),
    "pos_embed_rope_dtype": tuple(DTYPES),
    "pos_embed_rope_normalize_coords": ("min", "max", "separate"),
}
# Keywords of the reference for what timm's model has in one form only, with the value that stands for it.
FIXED = {
    "pos_embed_rope_min_period": None,
    "pos_embed_rope_max_period": None,
    "pos_embed_rope_shift_coords": None,
    "pos_embed_rope_jitter_coords": None,
    "ffn_bias": True,
    "proj_bias": True,
    "untie_cls_and_patch_norms": False,
}
# What a state of timm's names lacks keeps its value.
OWN = ("mask_token", "local_cls_norm.weight", "local_cls_norm.bias")


class LocalNorm(nn.Module):
    """The norm of the class token of pretraining's local crops; it is only kept for `to_reference_state_dict`.

    Args:
        embed_dim: channels.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(embed_dim), persistent=False)
        self.register_buffer("bias", torch.zeros(embed_dim), persistent=False)


class DinoVisionTransformer(ReferenceInterface):
    """DINOv3's ViT with the reference's constructor, attributes and methods.

    `state_dict()` has timm's names, and the rotary periods; `load_state_dict` takes these or the reference's, under any
    prefix. The mask token and the norm of local crops, which only pretraining needs, are taken from such a state, but
    are only in `to_reference_state_dict`; `dinov3.weights` leaves them aside.

    Args:
        img_size: nominal side of the images; any other size works.
        patch_size: side of the patches in pixels.
        in_chans: channels of the images.
        pos_embed_rope_base: base of the rotary periods.
        pos_embed_rope_normalize_coords: what coordinates are divided by: `separate` (height and width), `min` or `max`.
        pos_embed_rope_rescale_coords: R: in training coordinates are multiplied by a random factor from 1/R to R, where
            anything of the ViT trains.
        pos_embed_rope_dtype: `fp32`, `fp16` or `bf16`, of the rotary encoding.
        embed_dim: channels.
        depth: number of blocks.
        num_heads: attention heads.
        ffn_ratio: channels inside of the feed-forward networks, as a multiple of `embed_dim`.
        qkv_bias: whether queries and values have a bias. (A bias of the keys is not possible.)
        drop_path_rate: probability that the last block is skipped in training; less for earlier ones.
        layerscale_init: initial scale of the blocks' outputs; None for no scales.
        norm_layer: `layernorm` or `layernormbf16` (another epsilon).
        ffn_layer: `mlp`, `swiglu` or `swiglu64`.
        n_storage_tokens: number of storage (register) tokens.
        mask_k_bias: whether states in the reference's names have a `bias_mask`, which blanks the keys' bias.
        untie_global_and_local_cls_norm: whether there is a norm for local crops.
        device: where to create the parameters.
        others: the keywords of `FIXED`; unknown ones are ignored with a warning.

    Raises:
        ValueError: what timm's model cannot do, or an unknown kind of norm, network or number.
    """

    def __init__(
        self,
        *,
        img_size: int = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        pos_embed_rope_base: float = 100.0,
        pos_embed_rope_normalize_coords: str = "separate",
        pos_embed_rope_rescale_coords: float | None = None,
        pos_embed_rope_dtype: str = "bf16",
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        ffn_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        layerscale_init: float | None = None,
        norm_layer: str = "layernorm",
        ffn_layer: str = "mlp",
        n_storage_tokens: int = 0,
        mask_k_bias: bool = False,
        untie_global_and_local_cls_norm: bool = False,
        device: torch.device | str | None = None,
        **others: Any,
    ) -> None:
        _check_others(others)
        _check_choices(
            norm_layer=norm_layer,
            ffn_layer=ffn_layer,
            pos_embed_rope_dtype=pos_embed_rope_dtype,
            pos_embed_rope_normalize_coords=pos_embed_rope_normalize_coords,
        )
        gated = ffn_layer in SWIGLU_MULTIPLES
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            num_classes=0,
            global_pool="token",
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            qkv_bias=qkv_bias,
            mlp_ratio=ffn_ratio * 2 / 3 if gated else ffn_ratio,
            swiglu_mlp=gated,
            swiglu_align_to=SWIGLU_MULTIPLES.get(ffn_layer, 0),
            drop_path_rate=drop_path_rate,
            norm_layer=partial(nn.LayerNorm, eps=NORM_EPSILON[norm_layer]),
            init_values=layerscale_init,
            num_reg_tokens=n_storage_tokens,
            use_abs_pos_emb=False,
            use_rot_pos_emb=True,
            rope_type="dinov3",
            rope_temperature=pos_embed_rope_base,
            rope_rotate_half=True,
            use_fc_norm=False,
            dynamic_img_size=True,
            device=device,
        )
        self.rope.normalize_coords = pos_embed_rope_normalize_coords
        self.rope.rescale_coords = pos_embed_rope_rescale_coords
        self.rope.aug_active = pos_embed_rope_rescale_coords is not None
        match_reference(self)
        self.rope.periods = self.rope.periods.to(self.cls_token.device, DTYPES[pos_embed_rope_dtype])
        self.mask_k_bias = mask_k_bias
        self.register_buffer("mask_token", torch.zeros(1, embed_dim, device=device), persistent=False)
        self.local_cls_norm = LocalNorm(embed_dim).to(device) if untie_global_and_local_cls_norm else None
        self.register_load_state_dict_pre_hook(_take_reference_names)

    def forward_intermediates(self, *args: Any, **kwargs: Any) -> Any:
        """See timm's `Eva`. The coordinates of a frozen ViT are never rescaled at random."""
        self.rope.train(self.training and any(parameter.requires_grad for parameter in self.parameters()))
        return super().forward_intermediates(*args, **kwargs)

    def to_reference_state_dict(self) -> dict[str, Tensor]:
        """Return the state with the reference's names, which the reference's class of the same keywords loads strictly.

        Raises:
            ValueError: adapters (LoRA) are in the blocks; merge them first.
        """
        state = self.state_dict()
        if any("lora_" in name for name in state):
            raise ValueError("the reference has no names for adapters: merge them into the backbone first")
        own = {"mask_token": self.mask_token}
        if self.local_cls_norm is not None:
            own |= {
                "local_cls_norm.weight": self.local_cls_norm.weight,
                "local_cls_norm.bias": self.local_cls_norm.bias,
            }
        return own | timm_to_reference(state, self.mask_k_bias)


def _check_others(others: dict[str, Any]) -> None:
    """Raise ValueError for the first keyword that is set to what timm's model cannot do; warn of unknown ones."""
    for keyword, value in others.items():
        if keyword in FIXED and value != FIXED[keyword]:
            raise ValueError(f"timm's DINOv3 has no {keyword}: leave it at its default")
    unknown = sorted(others.keys() - FIXED.keys())
    if unknown:
        logger.warning("ignored unknown keywords of DinoVisionTransformer: %s", ", ".join(unknown))


def _check_choices(**chosen: str) -> None:
    """Raise ValueError for the first keyword whose value is not one of `CHOICES`."""
    for keyword, value in chosen.items():
        if value not in CHOICES[keyword]:
            raise ValueError(f"{keyword} must be one of {', '.join(CHOICES[keyword])}, found {value!r}")


def _take_reference_names(
    module: DinoVisionTransformer,
    state_dict: dict[str, Tensor],
    prefix: str,
    _metadata: dict,
    _strict: bool,
    _missing: list[str],
    _unexpected: list[str],
    errors: list[str],
) -> None:
    """Before loading, bring names of the reference to timm's (a hook of PyTorch, which knows the prefix)."""
    names = [name for name in state_dict if name.startswith(prefix)]
    state = {name.removeprefix(prefix): state_dict.pop(name) for name in names}
    buffers = dict(module.named_buffers())
    for name in OWN:
        if name in state and name in buffers:
            buffers[name].copy_(state[name])
    if not state.keys() & {PERIODS, "rope_embed.periods"}:
        state[PERIODS] = module.rope.periods
    if module.blocks[0].attn.q_bias is None and has_query_bias(state):
        errors.append("the state holds a query bias, which this ViT was built without (qkv_bias=True)")
    if _has_unmasked_key_bias(state):
        errors.append("the state holds a bias of the keys without a mask, which timm's DINOv3 cannot have")
    converted = reference_to_timm(state, module)
    if module.local_cls_norm is None and "local_cls_norm.weight" in state:
        converted["local_cls_norm.weight"] = state["local_cls_norm.weight"]  # unexpected, as in the reference
    state_dict.update({prefix + name: value for name, value in converted.items()})


def _has_unmasked_key_bias(state: dict[str, Tensor]) -> bool:
    for name, bias in state.items():
        if QKV_BIAS.fullmatch(name) and not bias.is_meta:
            mask = state.get(f"{name}_mask", torch.ones_like(bias))
            if bool((bias * mask).chunk(3)[1].any()):
                return True
    return False
