"""What makes timm's DINOv3 (class `Eva`) equal to the reference: rotary periods, query bias, names of the weights.

Architecture: Siméoni et al., "DINOv3", 2025, https://arxiv.org/abs/2508.10104.
"""

import torch
from timm.models.eva import checkpoint_filter_fn
from torch import Tensor, nn

PERIODS = "rope.periods"
REFERENCE_PERIODS = "rope_embed.periods"


def is_dinov3(model: nn.Module) -> bool:
    """Whether `model` is a timm model with DINOv3's rotary encoding."""
    return hasattr(getattr(model, "rope", None), "periods")


def match_reference(model: nn.Module) -> nn.Module:
    """Change a timm DINOv3 model in place so that it computes, trains and is saved like the reference.

    - The rotary periods become part of the state: the released files hold rounded ones, timm computes them in float32
      and drops them on saving, and the features of the two differ by some 1e-3.
    - A query bias is added after the `qkv` layer is called. timm's default calls `F.linear` on the layer's weight, past
      any adapter (LoRA) that wraps the layer.

    Args:
        model: a timm DINOv3 model, for which `is_dinov3` holds.

    Returns:
        The same model.
    """
    model.rope.register_buffer("periods", model.rope.periods, persistent=True)
    for block in model.blocks:
        block.attn.qkv_bias_separate = block.attn.q_bias is not None
    return model


def is_reference_state(state: dict[str, Tensor]) -> bool:
    """Whether `state` has the key names of the reference (`storage_tokens`, `rope_embed.periods`)."""
    return "storage_tokens" in state or REFERENCE_PERIODS in state


def has_query_bias(state: dict[str, Tensor]) -> bool:
    """Whether a DINOv3 state, in the reference's or in timm's names, holds a query or value bias other than zero.

    The released ViT-S, B and L files hold zeros. The key part does not count: a mask (`bias_mask`) blanks it, and the
    softmax over the keys cancels it.
    """
    for name, value in state.items():
        if name.endswith("attn.qkv.bias"):
            query, _, value_bias = value.chunk(3)
            if bool(query.any()) or bool(value_bias.any()):
                return True
        elif name.endswith(("attn.q_bias", "attn.v_bias")) and bool(value.any()):
            return True
    return False


def reference_to_timm(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Convert a state dict with the reference's names to the names of timm's DINOv3.

    Args:
        state: the reference's names to tensors.
        model: the timm model that the state is for; it must have a query bias if `has_query_bias(state)`.

    Returns:
        timm's names to tensors, the rotary periods of the file included. Tensors that only pretraining needs
        (`mask_token`, `bias_mask`, `local_cls_norm`) are left out.
    """
    if model.blocks[0].attn.q_bias is None:  # only zeros; timm's filter would print a line per block about each
        state = {name: value for name, value in state.items() if not name.endswith("attn.qkv.bias")}
    converted = checkpoint_filter_fn(state, model)
    if REFERENCE_PERIODS in state:
        converted[PERIODS] = state[REFERENCE_PERIODS].to(torch.float32)
    return converted
