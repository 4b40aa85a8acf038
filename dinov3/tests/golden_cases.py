"""Reference numbers: what the files hold, and how to build what they are of."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dinov3.eval.segmentation.models import BackboneLayersSet
from dinov3.models.vision_transformer import DinoVisionTransformer


class Case:
    """One object of the reference, with its constructor's arguments, its state, inputs and outputs."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.spec = json.loads((folder / f"{name}.json").read_text())
        self.state = _read(folder, f"{name}.state")
        self.tensors = _read(folder, f"{name}.io")

    def inputs(self, prefix: str = "") -> dict[str, Tensor]:
        """Inputs whose names begin with a prefix, without it."""
        return _named(self.tensors, f"in.{prefix}")

    def outputs(self, prefix: str = "") -> dict[str, Tensor]:
        """Outputs whose names begin with a prefix, without it."""
        return _named(self.tensors, f"out.{prefix}")

    def gradients(self, prefix: str = "") -> dict[str, Tensor]:
        """Gradients whose names begin with a prefix, without it."""
        return _named(self.tensors, f"grad.{prefix}")

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments, with a ViT for `backbone`."""
        arguments = dict(self.spec["constructor"])
        if "backbone" in arguments:
            arguments["backbone"] = DinoVisionTransformer(**arguments["backbone"])
        if "autocast_dtype" in arguments:
            arguments["autocast_dtype"] = getattr(torch, arguments["autocast_dtype"])
        if "backbone_out_layers" in arguments:
            arguments["backbone_out_layers"] = BackboneLayersSet[arguments["backbone_out_layers"]]
        return arguments

    def build(self, **changes: Any) -> nn.Module:
        """The object under the reference's import path, with its state loaded strictly, for evaluation."""
        arguments = self.arguments() | changes
        positional = [arguments.pop("backbone")] if "backbone" in arguments else []
        model = imported(self.spec["object"])(*positional, **arguments)
        model.load_state_dict(self.state, strict=True)
        return model.eval()


def imported(path: str) -> Any:
    """What an import path names."""
    module, _, attribute = path.rpartition(".")
    return getattr(import_module(module), attribute)


def flatten(value: Any, prefix: str = "") -> dict[str, Tensor]:
    """Nested lists and dictionaries of tensors as one dictionary, with names such as `aux_outputs.0.pred_masks`."""
    if isinstance(value, Tensor):
        return {prefix: value}
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    flat = {}
    for key, entry in pairs:
        flat |= flatten(entry, f"{prefix}.{key}" if prefix else str(key))
    return flat


def check_equal(found: dict[str, Tensor], expected: dict[str, Tensor], share: float = 1e-5) -> None:
    """Compare all expected tensors: the largest difference against `share` of the largest reference value."""
    assert expected and expected.keys() <= found.keys(), sorted(expected.keys() - found.keys())
    for name, reference in expected.items():
        value = found[name].detach()
        assert value.shape == reference.shape, name
        difference = (value.to(reference.dtype) - reference).abs().max()
        assert float(difference) <= share * float(reference.abs().max()), (name, float(difference))


def _read(folder: Path, stem: str) -> dict[str, Tensor]:
    tensors = {}
    for path in sorted(folder.glob(f"{stem}*.safetensors")):
        tensors |= load_file(path)
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}


def _named(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
