"""Fit the weights of a file to a timm ViT: every tensor of the network, no other, each of the right shape."""

import re
from collections import Counter
from dataclasses import dataclass
from math import isqrt

import torch
from timm.models import adapt_input_conv
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from dinov3.models.timm_dinov3 import PERIODS, is_dinov3, reference_to_timm
from dinov3.weights.layouts import WeightFile

PATCH_EMBEDDING = "patch_embed.proj.weight"
POSITIONS = "pos_embed"
REGISTERS = {"register_tokens", "reg_token", "storage_tokens"}
# Tensors that a network has and a file may lack, all of a kind, by the end of the name, with the reason.
MAY_BE_MISSING = {
    PERIODS: "only Meta's files hold the rotary periods, otherwise the network computes them",
    ".attn.q_bias": "a file without query bias stands for zeros",
    ".attn.v_bias": "a file without value bias stands for zeros",
}


@dataclass(frozen=True)
class Fit:
    """Weights that fit a network.

    Attributes:
        tensors: the network's own names to tensors.
        report: how many of the network's tensors the file fills, from which layout, and what was done to them.
    """

    tensors: dict[str, Tensor]
    report: str


def fit_weights(file: WeightFile, model: nn.Module) -> Fit:
    """Convert the weights of a file to the names and shapes of a network, and check that they fill it.

    Position embeddings are resampled, and the patch embedding is adapted to another number of input channels, both as
    timm does it.

    Args:
        file: the weights.
        model: a timm ViT, on any device (also `meta`), with or without adapters of peft around its layers. Nothing in
            it is changed.

    Raises:
        ValueError: the file is of another kind of network, or tensors are missing, unknown or of another shape.
    """
    own = model.state_dict()
    own_names = {_without_adapters(name): name for name in own if "lora_" not in name}
    expected = {plain: own[name] for plain, name in own_names.items()}
    try:
        converted, notes = _convert(file, model, expected)
    except Exception as error:  # timm's filter can raise anything on the weights of another kind of network
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{file.path} ({file}) does not fit the backbone: {reason}") from error
    _check(converted, expected, file)
    tensors = {own_names[name]: value for name, value in converted.items()}
    loaded = f"{len(tensors)} of {len(expected)} tensors of the backbone from {file.path} (layout {file})"
    return Fit(tensors, "; ".join([loaded, *notes, *_missing_notes(converted, expected), *_aside_note(file)]))


def _without_adapters(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def _convert(file: WeightFile, model: nn.Module, expected: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    _check_kind(file, model)
    state, notes = _choose_final_norm(file.tensors, expected)
    _check_patch_embedding(state.get(PATCH_EMBEDDING), expected[PATCH_EMBEDDING])
    if not is_dinov3(model):
        # a mask token is how timm's filter tells the files that need its conversion of DINOv2
        converted = checkpoint_filter_fn({"mask_token": torch.empty(0), **state}, model)
        # the filter drops these without a word; here they are unknown
        converted.update({name: value for name, value in state.items() if "pre_logits" in name})
    else:
        converted = reference_to_timm(state, model) if file.layout.rotary else state
    notes += _position_notes(state, converted)
    weight, in_chans = converted.get(PATCH_EMBEDDING), expected[PATCH_EMBEDDING].shape[1]
    if weight is not None and weight.ndim == 4 and weight.shape[1] == 3 != in_chans:
        converted[PATCH_EMBEDDING] = adapt_input_conv(in_chans, weight)
        notes.append(f"patch embedding adapted from 3 to {in_chans} input channels")
    return converted, notes


def _check_kind(file: WeightFile, model: nn.Module) -> None:
    rotary = is_dinov3(model)
    if file.layout.rotary not in (rotary, None):
        raise ValueError(f"these are not the weights of {'a DINOv3' if rotary else 'a ViT with position embeddings'}")
    if rotary and model.blocks[0].attn.q_bias is None and file.has_query_bias:
        raise ValueError("the file holds a query bias, which this backbone was built without")
    if getattr(model, "reg_token", None) is None and file.tensors.keys() & REGISTERS:
        raise ValueError("the file holds register tokens, the backbone has none (DINOv2: a size that ends in _reg)")


def _check_patch_embedding(found: Tensor | None, expected: Tensor) -> None:
    """Check the size of the patches: timm's filter would resample them without a word."""
    if found is not None and (found.ndim != 4 or found.shape[-2:] != expected.shape[-2:]):
        raise ValueError("; ".join(mismatches({PATCH_EMBEDDING: found}, {PATCH_EMBEDDING: expected})))


def _choose_final_norm(state: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Networks that were fine-tuned to classify may have their final norm behind the average over the patches."""
    if "fc_norm.weight" in expected:
        return dict(state), []
    if "norm.weight" in state:  # then an `fc_norm` is the classifier's
        return {name: value for name, value in state.items() if not name.startswith("fc_norm.")}, []
    renamed = {re.sub(r"^fc_norm\.", "norm.", name): value for name, value in state.items()}
    note = "WARNING: its fc_norm, fine-tuned behind the average over the patches, is the final norm of every patch"
    return renamed, [note] if renamed.keys() != state.keys() else []


def _check(converted: dict[str, Tensor], expected: dict[str, Tensor], file: WeightFile) -> None:
    optional = [end for end in MAY_BE_MISSING if not any(name.endswith(end) for name in converted)]
    needed = {n: v for n, v in expected.items() if n in converted or not n.endswith(tuple(optional))}
    problems = mismatches(converted, needed)
    problems += not_finite(converted)
    if problems:
        raise ValueError(f"{file.path} ({file}) does not fit the backbone: {'; '.join(problems)} (timm's names)")


def not_finite(state: dict[str, Tensor]) -> list[str]:
    """Return what to say of tensors with values that are not finite; nothing if there are none."""
    broken = [name for name, value in state.items() if not _is_finite(value)]
    return [f"{len(broken)} with values that are not finite, such as {broken[0]}"] if broken else []


def _is_finite(tensor: Tensor) -> bool:
    # one pass without copies, where `isfinite` makes several of the tensor; NaN is the least and the largest of any
    return not tensor.numel() or bool(torch.stack(tensor.aminmax()).isfinite().all())


def mismatches(found: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """Return the mismatches of two state dicts: tensors that are missing, unknown or of another shape."""
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    shapes = [
        f"{name} is {tuple(found[name].shape)} in the file, {tuple(expected[name].shape)} in the network"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    return [
        f"{len(names)} {label}s, such as {names[0]}" if len(names) > 1 else f"1 {label}: {names[0]}"
        for label, names in (("missing tensor", missing), ("unknown tensor", unknown), ("other shape", shapes))
        if names
    ]


def _position_notes(state: dict[str, Tensor], converted: dict[str, Tensor]) -> list[str]:
    before, after = (_grid(positions.get(POSITIONS)) for positions in (state, converted))
    return [] if before == after else [f"positions resampled from {before} × {before} to {after} × {after}"]


def _grid(positions: Tensor | None) -> int:
    # a class token more or less does not change the root, rounded down, of the number of patches
    return 0 if positions is None else isqrt(positions.shape[1])


def _missing_notes(converted: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    missing = [name for name in expected if name not in converted]
    return [reason for end, reason in MAY_BE_MISSING.items() if any(name.endswith(end) for name in missing)]


def _aside_note(file: WeightFile) -> list[str]:
    counts = Counter(name.split(".")[-1 if name.endswith("bias_mask") else 0] for name in file.aside)
    listed = ", ".join(f"{name} ({count})" if count > 1 else name for name, count in counts.items())
    return [f"{len(file.aside)} other tensors left aside: {listed}"] if file.aside else []
