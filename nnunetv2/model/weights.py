"""Pretrained weights: read a file safely, convert it to timm's names, load it strictly; fetch timm's hub copies."""

import pickle
from pathlib import Path

import timm
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from dinov3.models.timm_dinov3 import PERIODS, is_dinov3, is_reference_state, reference_to_timm

HUB_FILE = "model.safetensors"
HUB_TIMEOUT_SECONDS = 3
# Tensors that a backbone has and a file may lack, by the end of the name, with the reason.
MAY_BE_MISSING = {
    PERIODS: "timm does not save the rotary periods, the model computes them",
    ".attn.q_bias": "a file without query bias stands for zeros",
    ".attn.v_bias": "a file without value bias stands for zeros",
}
# Tensors that a file may hold and a backbone has no place for: the classifier of timm's own files.
MAY_BE_UNUSED = ("head.weight", "head.bias", "fc_norm.weight", "fc_norm.bias")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a `.safetensors` or PyTorch file without executing anything that it contains.

    Args:
        path: the file.

    Returns:
        Names to tensors, on the CPU.

    Raises:
        ValueError: there is no such file, or it cannot be read as weights.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"weight file not found: {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"cannot read {path} as a file of weights: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise ValueError(f"{path} holds no plain dictionary of tensors, which a weight file should")
    return state


def convert_to_timm(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Convert weights in an official DINOv3 or DINOv2 layout, or in timm's, to the names and shapes of a timm model.

    Position embeddings are resampled and the patch embedding is adapted to another number of input channels, both as
    timm does it.

    Args:
        state: names to tensors.
        model: the timm model that they are for.

    Returns:
        timm's names to tensors.

    Raises:
        ValueError: the file is of another kind of model.
    """
    registers = getattr(model, "reg_token", None)
    if any(name.endswith(("register_tokens", "reg_token")) for name in state) and registers is None:
        raise ValueError("the file holds register tokens, the backbone has none (DINOv2: a size that ends in _reg)")
    if is_dinov3(model):
        converted = reference_to_timm(state, model) if is_reference_state(state) else dict(state)
    else:
        converted = checkpoint_filter_fn(state, model)
    weight = converted.get("patch_embed.proj.weight")
    in_chans = model.patch_embed.proj.weight.shape[1]
    if weight is not None and weight.ndim == 4 and weight.shape[1] == 3 != in_chans:
        converted["patch_embed.proj.weight"] = adapt_input_conv(in_chans, weight)
    return converted


def check_fit(state: dict[str, Tensor], expected: dict[str, Tensor], source: str) -> None:
    """Check that converted weights fill a model: every tensor, no other, each of the right shape.

    Args:
        state: timm's names to tensors, from the file.
        expected: timm's names to tensors, of the model.
        source: what to call the file in the message.

    Raises:
        ValueError: names the tensors that are missing, unknown or of another shape.
    """
    missing = [name for name in expected if name not in state and not name.endswith(tuple(MAY_BE_MISSING))]
    unknown = [name for name in state if name not in expected and name not in MAY_BE_UNUSED]
    shapes = [
        f"{name} is {tuple(state[name].shape)} in the file and {tuple(expected[name].shape)} in the model"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    problems = [
        f"{len(names)} {label}, such as {names[0]}" if len(names) > 1 else f"{label}: {names[0]}"
        for label, names in (("missing tensors", missing), ("unknown tensors", unknown), ("other shapes", shapes))
        if names
    ]
    if problems:
        raise ValueError(f"{source} does not fit the backbone: {'; '.join(problems)}")


def download_hub_weights(timm_name: str) -> Path:
    """Return the local path of timm's hub copy of pretrained weights, downloading it where it is not in the cache.

    Args:
        timm_name: timm's model name with its tag, such as `vit_base_patch16_dinov3.lvd1689m`.

    Returns:
        Path of the safetensors file.

    Raises:
        ValueError: there is no copy, or it is not in the cache and the hub does not answer within seconds.
    """
    remedy = "pass a local file as model.checkpoint_path, or model.pretrained=false for random weights"
    config = timm.get_pretrained_cfg(timm_name)
    if config is None or not config.hf_hub_id:
        raise ValueError(f"timm has no pretrained weights of {timm_name}: {remedy}")
    full_name = ".".join(filter(None, (config.architecture, config.tag)))
    # timm writes `timm/` for `timm/<name of the model with its tag>`
    repository = config.hf_hub_id + full_name if config.hf_hub_id.endswith("/") else config.hf_hub_id
    cached = try_to_load_from_cache(repository, HUB_FILE)
    if isinstance(cached, str):
        return Path(cached)
    try:
        get_hf_file_metadata(hf_hub_url(repository, HUB_FILE), timeout=HUB_TIMEOUT_SECONDS)
        return Path(hf_hub_download(repository, HUB_FILE))
    except Exception as error:  # the client raises errors of its own, of its HTTP library and of the system
        raise ValueError(
            f"the pretrained weights of {timm_name} are not in the local cache and could not be downloaded from "
            f"{repository} ({type(error).__name__}): {remedy}"
        ) from error
