"""timm's DINOv3, made equal, reproduces the reference's numbers."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from dinov3.models.timm_dinov3 import has_query_bias, is_dinov3, match_reference, reference_to_timm
from dinov3.weights.fitting import fit_weights
from dinov3.weights.layouts import read_weights

NAMES = ["vit_backbone_mlp", "vit_backbone_swiglu", "vit_backbone_swiglu64"]


def load(golden: Path, name: str) -> tuple[dict, dict, dict]:
    spec = json.loads((golden / f"{name}.json").read_text())
    tensors = [load_file(golden / f"{name}.{part}.safetensors") for part in ("state", "io")]
    return spec, *({k: v.float() if v.is_floating_point() else v for k, v in part.items()} for part in tensors)


def build(options: dict) -> torch.nn.Module:
    """timm's model with the constructor arguments of the reference."""
    swiglu = {"swiglu": 8, "swiglu64": 64}.get(options["ffn_layer"])
    ratio = options["ffn_ratio"] * 2 / 3 if swiglu else options["ffn_ratio"]
    gated = {"swiglu_mlp": True, "swiglu_align_to": swiglu} if swiglu else {}
    sizes = {key: options[key] for key in ("embed_dim", "depth", "num_heads", "qkv_bias")}
    name = "vit_small_patch16_dinov3"
    return match_reference(timm.create_model(name, num_classes=0, mlp_ratio=ratio, **sizes, **gated)).eval()


@pytest.mark.parametrize("name", NAMES)
def test_features_equal_the_reference(name: str, golden: Path, tmp_path: Path):
    spec, state, tensors = load(golden, name)
    model = build(spec["constructor"])
    assert is_dinov3(model) and has_query_bias(state) == spec["constructor"]["qkv_bias"]
    torch.save(state, tmp_path / "reference.pth")
    model.load_state_dict(fit_weights(read_weights(tmp_path / "reference.pth"), model).tensors, strict=True)
    compared = 0
    for image in ("img0", "img1"):
        with torch.no_grad():
            outputs = model.forward_intermediates(
                tensors[f"in.{image}"], spec["n_list"], return_prefix_tokens=True, norm=True, intermediates_only=True
            )
        for layer, (patch, prefix) in zip(spec["n_list"], outputs, strict=True):
            for key, value in (("patch", patch), ("cls", prefix[:, 0]), ("extra", prefix[:, 1:])):
                expected = tensors[f"out.{image}.norm.layer{layer}.{key}"]
                assert torch.allclose(value, expected, **{k: spec["tolerance"][k] for k in ("atol", "rtol")})
                compared += 1
    assert compared == 2 * 3 * len(spec["n_list"])


def test_without_the_periods_of_the_file_the_features_differ(golden: Path):
    spec, state, tensors = load(golden, NAMES[0])
    model = build(spec["constructor"])
    recomputed = model.rope.periods.clone()
    model.load_state_dict(reference_to_timm(state, model), strict=True)
    model.rope.periods.copy_(recomputed)
    with torch.no_grad():
        patch = model.forward_intermediates(tensors["in.img0"], [3], norm=True, intermediates_only=True)[0]
    assert (patch - tensors["out.img0.norm.layer3.patch"]).abs().max() > 1e-3
