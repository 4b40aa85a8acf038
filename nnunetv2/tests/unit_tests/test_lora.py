"""LoRA: where the adapters sit, that they train, and that merging keeps the outputs."""

import pytest
import torch

from nnunetv2.model.backbone import FAMILIES, create_backbone, get_vit_features
from nnunetv2.model.lora import disable_lora, enable_lora
from nnunetv2.model.model_linear import LinearSegmentationModel


def image_for(model: torch.nn.Module) -> torch.Tensor:
    patch = model.patch_embed.patch_size[0]
    return torch.rand(1, 3, 3 * patch, 4 * patch)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_sit_in_the_blocks_only(family: str):
    model = enable_lora(create_backbone(family, "tiny")[0], target_modules=["qkv", "proj"])
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    assert len(adapted) == 2 * 4 and all(".blocks." in name and ".attn." in name for name in adapted)


@pytest.mark.parametrize("query_bias", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_adapter_gets_a_gradient_and_nothing_else(family: str, query_bias: bool):
    model = enable_lora(create_backbone(family, "tiny", query_bias=query_bias)[0])
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # starts at zero, which would hide lora_A's gradient
            torch.nn.init.normal_(parameter)
    sum(x.square().mean() for x in get_vit_features(model, image_for(model), [0, 1, 2, 3])).backward()
    with_gradient = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert with_gradient == {n for n, _ in model.named_parameters() if "lora_" in n} and len(with_gradient) == 8


@pytest.mark.parametrize("query_bias", [False, True])
def test_merging_keeps_the_outputs(query_bias: bool):
    model = enable_lora(create_backbone("dinov3", "tiny", query_bias=query_bias)[0], lora_dropout=0.0).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    image = image_for(model)
    with torch.no_grad():
        before = get_vit_features(model, image, [3])[0]
        merged = disable_lora(model)
        after = get_vit_features(merged, image, [3])[0]
    assert not [n for n, _ in merged.named_parameters() if "lora" in n]
    assert torch.allclose(before, after, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rank": 0}, "at least 1, got 0"),
        ({"target_modules": ["query"]}, "'fc1', 'fc2', 'proj', 'qkv'"),
        ({"target_modules": []}, "match no layer"),
    ],
)
def test_impossible_options_are_refused(options: dict, told: str):
    with pytest.raises(ValueError, match=told):
        enable_lora(create_backbone("dinov3", "tiny")[0], **options)


def test_adapter_parameters_at_vit_base():
    with torch.device("meta"):
        model = enable_lora(create_backbone("dinov3", "base")[0])
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 294_912  # reference/heads.md


@pytest.mark.parametrize(("use_rslora", "scale"), [(False, 16 / 4), (True, 16 / 2)])
def test_the_adapters_are_scaled_by_the_rank_or_by_its_root(use_rslora: bool, scale: float):
    model = enable_lora(create_backbone("dinov3", "tiny")[0], rank=4, lora_alpha=16, use_rslora=use_rslora)
    assert model.get_base_model().blocks[0].attn.qkv.scaling["default"] == pytest.approx(scale)
    network = LinearSegmentationModel(
        backbone_size="tiny", use_lora=True, lora_rank=4, lora_alpha=16, use_rslora=use_rslora
    )
    assert network.backbone.get_base_model().blocks[0].attn.qkv.scaling["default"] == pytest.approx(scale)


def test_adapters_of_blocks_that_are_never_run_do_not_train():
    model = enable_lora(create_backbone("dinov3", "tiny")[0], used_blocks=2)
    assert {name.split(".")[3] for name, p in model.named_parameters() if p.requires_grad} == {"0", "1"}
