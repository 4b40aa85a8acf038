"""What makes timm's DINOv3 (class `Eva`) equal to the reference: rotary periods, query bias, names of the weights.

Architecture: Siméoni et al., "DINOv3", 2025, https://arxiv.org/abs/2508.10104.
"""

import re

import torch
from torch import Tensor, nn

PERIODS = "rope.periods"
# Names of the reference, as regular expressions: what only pretraining needs, and what timm calls otherwise.
PRETRAINING_ONLY = r"mask_token|local_cls_norm\.(weight|bias)|blocks\.\d+\.attn\.qkv\.(base_layer\.)?bias_mask"
QKV_BIAS = re.compile(r"(.*attn\.)qkv\.(?:base_layer\.)?bias")  # also of a layer that peft has wrapped
RENAMES = (
    (r"^storage_tokens$", "reg_token"),
    (r"^rope_embed\.periods$", PERIODS),
    (r"\.ls(\d)\.gamma$", r".gamma_\1"),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
# And back; in gated feed-forward networks alone also GATED_RENAME.
TIMM_RENAMES = (
    (r"^reg_token$", "storage_tokens"),
    (r"^rope\.periods$", "rope_embed.periods"),
    (r"\.gamma_(\d)$", r".ls\1.gamma"),
    (r"\.mlp\.fc1_g\.", ".mlp.w1."),
    (r"\.mlp\.fc1_x\.", ".mlp.w2."),
)
GATED_RENAME = (r"\.mlp\.fc2\.", ".mlp.w3.")


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


def has_query_bias(state: dict[str, Tensor]) -> bool:
    """Whether a DINOv3 state, in the reference's or in timm's names, holds a query or value bias other than zero.

    The released ViT-S, B and L files hold zeros. The key part does not count: a mask (`bias_mask`) blanks it, and the
    softmax over the keys cancels it.
    """
    for name, value in state.items():
        if value.is_meta:
            continue
        if QKV_BIAS.fullmatch(name):
            query, _, value_bias = value.chunk(3)
            if bool(query.any()) or bool(value_bias.any()):
                return True
        elif name.endswith(("attn.q_bias", "attn.v_bias")) and bool(value.any()):
            return True
    return False


def reference_to_timm(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Convert a state dict with the reference's names to the names of timm's DINOv3.

    timm's own filter is not used: it also drops what it does not know, and says so for no tensor.

    Args:
        state: the reference's names to tensors.
        model: the timm model that the state is for; it must have a query bias if `has_query_bias(state)`.

    Returns:
        timm's names to tensors, the rotary periods of the file included. Tensors that only pretraining needs
        (`PRETRAINING_ONLY`) are left out. A name that timm does not have is kept as it is.

    Raises:
        ValueError: some blocks have a bias of their attention, and others not.
    """
    converted = {}
    for name, value in state.items():
        if match := QKV_BIAS.fullmatch(name):
            converted[f"{match[1]}q_bias"], _, converted[f"{match[1]}v_bias"] = value.chunk(3)
        elif not re.fullmatch(PRETRAINING_ONLY, name):
            for pattern, replacement in RENAMES:
                name = re.sub(pattern, replacement, name)
            converted[name] = value.to(torch.float32) if name == PERIODS else value
    if model.blocks[0].attn.q_bias is None:
        _drop_zero_bias(converted, len(model.blocks))
    return converted


def timm_to_reference(state: dict[str, Tensor], bias_mask: bool) -> dict[str, Tensor]:
    """Convert a state dict with the names of timm's DINOv3 to the reference's.

    Args:
        state: timm's names to tensors.
        bias_mask: whether to write, beside each bias of queries, keys and values, the mask that blanks the keys' part.

    Returns:
        The reference's names to tensors. The keys' bias, which timm does not have, is zero.
    """
    gated = any(".mlp.fc1_g." in name for name in state)
    renames = (*TIMM_RENAMES, GATED_RENAME) if gated else TIMM_RENAMES
    converted = {}
    for name, value in state.items():
        attention, _, part = name.rpartition("attn.")
        if part == "v_bias":
            continue
        if part == "q_bias":
            qkv = f"{attention}attn.qkv.bias"
            zeros, ones = torch.zeros_like(value), torch.ones_like(value)
            converted[qkv] = torch.cat([value, zeros, state[f"{attention}attn.v_bias"]])
            if bias_mask:
                converted[f"{qkv}_mask"] = torch.cat([ones, zeros, ones])
            continue
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        converted[name] = value
    return converted


def _drop_zero_bias(converted: dict[str, Tensor], depth: int) -> None:
    blocks = [i for i in range(depth) if converted.pop(f"blocks.{i}.attn.q_bias", None) is not None]
    for i in blocks:
        del converted[f"blocks.{i}.attn.v_bias"]
    missing = sorted(set(range(depth)) - set(blocks)) if blocks else []
    if missing:
        raise ValueError(f"1 missing tensor: blocks.{missing[0]}.attn.qkv.bias")
