"""Features of every kind of ViT: where the final norm is, which tokens stand before the patches."""

import pytest
import timm
import torch
from torch import nn

from dinov3.eval.segmentation.models import build_segmentation_decoder
from dinov3.models.features import get_vit_features
from dinov3.models.lora import add_lora

# timm's name, its options, and the number of class and register tokens
VITS = [
    ("vit_small_patch14_dinov2", {"img_size": 518}, 1),
    ("vit_small_patch14_reg4_dinov2", {"img_size": 518}, 5),
    ("vit_base_patch16_224", {}, 1),
    ("vit_little_patch16_reg1_gap_256", {}, 1),  # its final norm stands behind the average over the patches
    ("vit_base_patch16_siglip_224", {}, 0),
    ("vit_small_patch16_dinov3", {}, 5),
]
every_vit = pytest.mark.parametrize(("name", "options", "prefix_tokens"), VITS)


def vit(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, embed_dim=48, depth=4, num_heads=2, dynamic_img_size=True, **options)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):  # norms that do something
                module.weight.normal_()
                module.bias.normal_()
    return model.eval()


def final_norm(model: nn.Module) -> nn.Module:
    return model.fc_norm if isinstance(model.norm, nn.Identity) else model.norm


@every_vit
def test_maps_and_tokens_are_the_normalised_outputs_of_the_blocks(name: str, options: dict, prefix_tokens: int):
    model, outputs = vit(name, **options), []
    for index in (1, 3):
        model.blocks[index].register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    patch = model.patch_embed.patch_size[0]
    x = torch.rand(2, 3, 3 * patch, 2 * patch)
    with torch.no_grad():
        maps = get_vit_features(model, x, [1, 3])
        tokens = get_vit_features(model, x, [1, 3], output_fmt="NLC")
        raw = get_vit_features(model, x, [1, 3], output_fmt="NLC", norm=False)
        for output, feature_map, patches, before in zip(outputs[:2], maps, tokens, raw, strict=True):
            expected = final_norm(model)(output)[:, prefix_tokens:]
            assert torch.allclose(patches, expected, atol=1e-5)
            assert torch.allclose(feature_map, expected.transpose(1, 2).unflatten(-1, (3, 2)), atol=1e-5)
            assert torch.equal(before, output[:, prefix_tokens:])
            assert (patches - before).abs().max() > 0.1


@pytest.mark.parametrize(("name", "options", "prefix_tokens"), [vit for vit in VITS if vit[2]])
def test_prefix_tokens_are_normalised_too(name: str, options: dict, prefix_tokens: int):
    model = vit(name, **options)
    patch = model.patch_embed.patch_size[0]
    x = torch.rand(2, 3, 2 * patch, 2 * patch)
    with torch.no_grad():
        ((normed, prefix),) = get_vit_features(model, x, [3], return_prefix_tokens=True)
        ((_, before),) = get_vit_features(model, x, [3], return_prefix_tokens=True, norm=False)
        assert torch.equal(normed, get_vit_features(model, x, [3])[0])
        assert prefix.shape == (2, prefix_tokens, 48)
        assert torch.allclose(prefix, final_norm(model)(before), atol=1e-5)


@pytest.mark.parametrize("with_lora", [False, True])
@every_vit
def test_a_segmentor_leaves_the_vit_what_it_is(name: str, options: dict, prefix_tokens: int, with_lora: bool):
    model = vit(name, **options)
    kind, names = type(model), set(model.state_dict())
    backbone = add_lora(model, 2, 4.0, 0.0, ["qkv"]) if with_lora else model
    segmentor = build_segmentation_decoder(backbone, "FOUR_LAST", "linear", num_classes=3, lora_enabled=with_lora)
    assert segmentor.eval()(torch.rand(1, 3, 40, 33)).shape[:2] == (1, 3)
    assert type(model) is kind
    if not with_lora:  # the rotary periods of a DINOv3 become part of the state
        assert set(model.state_dict()) - names <= {"rope.periods"}
