"""Load the weights of whole segmentors, or of what stands on the ViT: ours and those of the reference."""

import re
from pathlib import Path

import torch
from torch import Tensor

from dinov3.errors import ExperimentError
from dinov3.eval.segmentation.models.segmentor import FeatureDecoder
from dinov3.weights.fitting import mismatches
from dinov3.weights.layouts import unwrap
from dinov3.weights.reading import read_checkpoint

State = dict[str, Tensor]

PARTS = "segmentation_model."
WRAPPERS = ("module.", "_orig_mod.", "model.")
VIT = (f"{PARTS}0.backbone.", f"{PARTS}0.feature_model.")
ADAPTER = ".lora_"
# Of each decoder the layer that has an output for each class, and the number of its other outputs ("no object").
CLASS_LAYERS = {"linear": (f"{PARTS}1.conv", 0), "m2f": (f"{PARTS}1.predictor.class_embed", 1)}


def load_segmentor(model: FeatureDecoder, path: str | Path, allow_other_classes: bool = False) -> str:
    """Load weights into a segmentor.

    The file is a checkpoint of `dinov3.eval.segmentation`, a whole segmentor of the reference, or the reference's file
    of a head, which has all but the ViT; then the ViT stays as it is. The names may lack `segmentation_model.`, or have
    a wrapper's prefix, such as `module.`.

    Args:
        model: the segmentor.
        path: the file, in any format that `read_checkpoint` reads.
        allow_other_classes: leave the layer that has an output for each class as it is where the file's has another
            number of them.

    Returns:
        What was loaded, in a line.

    Raises:
        ExperimentError: the file cannot be read, or does not fit; the segmentor may then be loaded in part.
    """
    try:
        _, state = unwrap(read_checkpoint(path), Path(path))
    except ValueError as error:
        raise ExperimentError(str(error)) from error
    state, own = _with_own_names(state), model.state_dict()
    notes = []
    try:
        _check_decoder(state, own)
        _check_adapters(state, own)
        if other := _other_classes(state, own, allow_other_classes):
            state = {name: value for name, value in state.items() if name not in other}
            notes.append(f"the class layer stays as it is, the file's has {_num_classes(other)} classes")
            own = {name: value for name, value in own.items() if name not in other}
        _load(model, state, own)
    except (ValueError, RuntimeError) as error:
        raise ExperimentError(f"{path} does not fit the segmentor: {_one_line(error)}") from error
    if not any(name.startswith(VIT) and ADAPTER not in name for name in state):
        notes.append("the ViT stays as it is, the file has none")
    return "; ".join([f"segmentor loaded from {path}, {len(state)} tensors", *notes])


def _with_own_names(state: State) -> State:
    while prefix := next((prefix for prefix in WRAPPERS if all(name.startswith(prefix) for name in state)), ""):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    if all(re.match(r"[01]\.", name) for name in state):
        state = {f"{PARTS}{name}": value for name, value in state.items()}
    return state


def _check_decoder(state: State, own: State) -> None:
    expected, found = _decoder_type(own), _decoder_type(state)
    if found is None:
        first = ", ".join(list(state)[:3])
        raise ValueError(f"it holds no decoder (a ViT alone belongs under `model`), its first tensors are {first}")
    if found != expected:
        raise ValueError(f"it holds a decoder of the type {found}, expected {expected} (decoder_head.type)")


def _decoder_type(state: State) -> str | None:
    return next((kind for kind, (layer, _) in CLASS_LAYERS.items() if f"{layer}.weight" in state), None)


def _check_adapters(state: State, own: State) -> None:
    has_vit = any(name.startswith(VIT) for name in state)
    adapted, expected = (any(ADAPTER in name for name in names) for names in (state, own))
    if adapted and not expected:
        raise ValueError("its ViT has LoRA adapters, expected none (lora.enabled=true builds them)")
    if has_vit and expected and not adapted:
        raise ValueError("its ViT has no LoRA adapters, expected some (lora.enabled=false builds none)")


def _other_classes(state: State, own: State, allowed: bool) -> State:
    """The class layer of the file, if the segmentor's has another number of classes."""
    found, expected = _num_classes(state), _num_classes(own)
    if found == expected:
        return {}
    if not allowed:
        raise ValueError(f"it has {found} classes, expected {expected} (decoder_head.num_classes)")
    layer, _ = CLASS_LAYERS[_decoder_type(state)]
    return {name: value for name, value in state.items() if name.startswith(f"{layer}.")}


def _num_classes(state: State) -> int:
    layer, others = CLASS_LAYERS[_decoder_type(state)]
    return state[f"{layer}.weight"].shape[:1].numel() - others


def _load(model: FeatureDecoder, state: State, own: State) -> None:
    """Load all of `own`, which may lack the ViT without its adapters, or with them."""
    both = {name: value for name, value in own.items() if name in state}
    if problems := mismatches({name: state[name] for name in both}, both):
        raise ValueError("; ".join(problems))
    # hooks of the ViT bring the reference's names to ours
    missing, unknown = model.load_state_dict(state, strict=False)
    parts_of_vit = {ADAPTER in name for name in state if name.startswith(VIT)}
    lacking = {
        name: own[name]
        for name in missing
        if name in own and (not name.startswith(VIT) or (ADAPTER in name) in parts_of_vit)
    }
    if problems := mismatches(dict.fromkeys(unknown, torch.empty(0)), lacking):
        raise ValueError("; ".join(problems))


def _one_line(error: Exception) -> str:
    # PyTorch lists what it finds under a heading
    lines = [line.strip() for line in str(error).splitlines()]
    return lines[1] if isinstance(error, RuntimeError) and len(lines) > 1 else " ".join(lines)
