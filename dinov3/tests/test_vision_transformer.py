"""The reference's interface on timm's ViTs: keywords, names of the weights, modes."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_cases import Case
from peft import LoraConfig, get_peft_model

from dinov3.hub.backbones import ARCHITECTURES, Weights, create_model
from dinov3.models.features import get_vit_features
from dinov3.models.vision_transformer import DinoVisionTransformer

VITS = ["vit_backbone_mlp", "vit_backbone_swiglu", "vit_backbone_swiglu64"]
TABLES = [f"backbone_{name}" for name in ARCHITECTURES] + ["backbone_dinov3_vitl16_sat493m"]


def tiny(**options: Any) -> DinoVisionTransformer:
    return DinoVisionTransformer(**{"embed_dim": 64, "depth": 4, "num_heads": 2, "n_storage_tokens": 4, **options})


@pytest.mark.parametrize("name", VITS)
def test_states_go_back_and_forth(name: str, golden: Path):
    case = Case(golden, name)
    model = case.build()
    written = model.to_reference_state_dict()
    assert written.keys() == case.state.keys()
    for key, value in case.state.items():
        if key.endswith("qkv.bias"):  # the keys' part is blanked by the mask
            query, _, of_values = value.chunk(3)
            value = torch.cat([query, torch.zeros_like(query), of_values])
        assert torch.equal(written[key], value), key
    names = model.state_dict().keys()
    assert "reg_token" in names and not any("storage" in n or "mask" in n or "ls1" in n for n in names)
    other = DinoVisionTransformer(**case.spec["constructor"])
    other.load_state_dict(model.state_dict(), strict=True)
    other.load_state_dict(written, strict=True)
    x = case.inputs()["img0"]
    assert torch.equal(other.eval()(x), model(x))


@pytest.mark.parametrize("name", TABLES)
def test_names_and_shapes_of_the_official_models(name: str, golden: Path):
    table = json.loads((golden / "state_keys" / f"{name}.json").read_text())["state"]
    weights = Weights.SAT493M if name.endswith("sat493m") else Weights.LVD1689M
    with torch.device("meta"):
        model = create_model(name.removeprefix("backbone_").removesuffix("_sat493m"), False, weights)
    model.load_state_dict({key: torch.empty(shape, device="meta") for key, (shape, _) in table.items()}, strict=True)
    written = {key: list(value.shape) for key, value in model.to_reference_state_dict().items()}
    assert written == {key: shape for key, (shape, _) in table.items()}


def test_strict_loading_tells_what_is_missing_and_unknown():
    model = tiny()
    state = model.to_reference_state_dict()
    del state["blocks.1.norm1.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*blocks.1.norm1.weight"):
        model.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*local_cls_norm"):
        model.load_state_dict(model.to_reference_state_dict() | {"local_cls_norm.weight": torch.ones(64)})


def test_names_of_the_reference_below_peft():
    source = tiny(mask_k_bias=True)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_()
    wrapped = get_peft_model(tiny(mask_k_bias=True), LoraConfig(target_modules=["qkv", "proj"]))
    adapted = (".attn.qkv.", ".attn.proj.", "patch_embed.proj.")
    state = {name: value for name, value in wrapped.state_dict().items() if "lora_" in name}
    for name, value in source.to_reference_state_dict().items():
        part = next((part for part in adapted if part in f".{name}"), None)
        state["base_model.model." + (name.replace(part, f"{part}base_layer.") if part else name)] = value
    wrapped.load_state_dict(state, strict=True)
    x = torch.rand(1, 3, 32, 48)
    assert torch.allclose(wrapped.eval()(x), source.eval()(x), atol=1e-6)


def test_a_query_bias_works_together_with_lora():
    model = get_peft_model(tiny(), LoraConfig(target_modules=r"blocks\.\d+\.attn\.qkv"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model(torch.rand(1, 3, 32, 32)).square().sum().backward()
    adapters = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    assert len(adapters) == 8 and all(bool(parameter.grad.any()) for parameter in adapters)


def test_a_bias_that_timm_cannot_have_is_told():
    state = tiny().to_reference_state_dict()
    state["blocks.0.attn.qkv.bias"] = torch.ones(192)
    with pytest.raises(RuntimeError, match="bias of the keys without a mask"):
        tiny().load_state_dict(state)
    with pytest.raises(RuntimeError, match="query bias, which this ViT was built without"):
        tiny(qkv_bias=False).load_state_dict(state)


@pytest.mark.parametrize(
    "options",
    [
        {"untie_cls_and_patch_norms": True},
        {"pos_embed_rope_shift_coords": 0.1},
        {"pos_embed_rope_jitter_coords": 1.2},
        {"pos_embed_rope_min_period": 1.0},
        {"ffn_bias": False},
        {"ffn_layer": "moe"},
        {"norm_layer": "rmsnorm"},
        {"pos_embed_rope_dtype": "fp8"},
        {"pos_embed_rope_normalize_coords": "both"},
    ],
)
def test_what_timm_cannot_do_is_told(options: dict):
    with pytest.raises(ValueError, match=next(iter(options))):
        tiny(**options)


def test_unknown_keywords_are_ignored_with_a_warning(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        tiny(fancy=1)
    assert "fancy" in caplog.text


def test_rescaling_of_the_coordinates_in_training_only_where_something_trains():
    model = tiny(pos_embed_rope_rescale_coords=2)
    x = torch.rand(1, 3, 48, 48)
    assert not torch.equal(model.train()(x), model(x)) and torch.equal(model.eval()(x), model(x))
    model.train().requires_grad_(False)  # in either order
    assert torch.equal(model(x), model(x))
    assert torch.equal(model.train()(x), model(x))


def test_attributes_of_the_reference():
    model = tiny()
    assert (model.embed_dim, model.num_features, model.n_blocks, model.num_heads) == (64, 64, 4, 2)
    assert (model.patch_size, model.n_storage_tokens) == (16, 4) and model.cls_token.shape == (1, 1, 64)
    assert model.storage_tokens.shape == (1, 4, 64) and model.mask_token.shape == (1, 64)
    assert isinstance(model.head, torch.nn.Identity) and model.cls_norm is None and model.local_cls_norm is None
    assert not hasattr(tiny(n_storage_tokens=0), "storage_tokens")
    assert model.rope_embed is model.rope


def test_lists_of_images_and_the_dictionary():
    model = tiny().eval()
    images = [torch.rand(1, 3, 32, 32), torch.rand(2, 3, 48, 32)]
    both = model(images, is_training=True)
    assert [features["x_norm_patchtokens"].shape for features in both] == [(1, 4, 64), (2, 6, 64)]
    assert torch.equal(both[1]["x_norm_clstoken"], model(images[1]))


def test_intermediate_layers_are_the_features_of_any_vit():
    model = tiny().eval()
    x = torch.rand(2, 3, 53, 48)
    layers = model.get_intermediate_layers(x, n=[1, 3], reshape=True, return_class_token=True, return_extra_tokens=True)
    features = get_vit_features(model, x[..., :48, :], [1, 3], return_prefix_tokens=True)
    for (patches, class_token, extra), (expected, prefix) in zip(layers, features, strict=True):
        assert torch.equal(patches, expected)
        assert torch.equal(torch.cat([class_token.unsqueeze(1), extra], dim=1), prefix)
    (last,) = model.get_intermediate_layers(x)
    assert torch.equal(last, features[-1][0].flatten(2).transpose(1, 2))
