"""Whole segmentors: any size, any ViT, any mode of training."""

import copy
import pickle
from typing import Any

import pytest
import timm
import torch
from golden_cases import flatten
from torch import Tensor, nn

from dinov3.eval.segmentation.models import BackboneLayersSet, FeatureDecoder, build_segmentation_decoder
from dinov3.eval.segmentation.models.backbone.dinov3_adapter import DINOv3_Adapter
from dinov3.eval.segmentation.models.utils.extent import crop_extent
from dinov3.models.lora import add_lora
from dinov3.models.vision_transformer import DinoVisionTransformer

SMALL_HEAD = {"hidden_dim": 32, "num_queries": 7, "nheads": 4, "dim_feedforward": 48, "enc_layers": 2, "dec_layers": 4}
SIZES = [(64, 96), (80, 112), (97, 131), (16, 16), (32, 32)]
TIMM_VITS = {
    "dinov2": ("vit_small_patch14_dinov2", {"img_size": 518}),
    "dinov2_reg": ("vit_small_patch14_reg4_dinov2", {"img_size": 518}),
    "mae": ("vit_base_patch16_224", {}),
}


def vit(name: str = "dinov3", **options: Any) -> nn.Module:
    torch.manual_seed(0)
    shape = {"embed_dim": 64, "depth": 4, "num_heads": 2}
    if name == "dinov3":
        return DinoVisionTransformer(**shape, n_storage_tokens=4, mask_k_bias=True, **options)
    timm_name, keywords = TIMM_VITS[name]
    return timm.create_model(timm_name, num_classes=0, dynamic_img_size=True, **shape, **keywords, **options)


def segmentor(decoder_type: str = "m2f", backbone: nn.Module | None = None, **options: Any) -> FeatureDecoder:
    model = backbone or vit()
    torch.manual_seed(1)
    head = SMALL_HEAD if decoder_type == "m2f" else {}
    return build_segmentation_decoder(model, decoder_type=decoder_type, **{"num_classes": 3, **head, **options})


def total(output: Tensor | dict) -> Tensor:
    return sum(value.square().mean() for value in flatten(output).values())


def with_gradient(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["dinov3", *TIMM_VITS])
def test_any_size_with_any_vit(name: str, size: tuple[int, int]):
    quarter = tuple(-(-side // 4) for side in size)
    model = segmentor(backbone=vit(name))
    output = model.train()(torch.rand(1, 3, *size))  # one image, in training mode
    assert output["pred_masks"].shape == (1, 7, *quarter) and output["pred_logits"].shape == (1, 7, 4)
    assert [tuple(layer["pred_masks"].shape) for layer in output["aux_outputs"]] == [(1, 7, *quarter)] * 4
    assert all(bool(value.isfinite().all()) for value in flatten(output).values())
    predicted = model.eval().predict(torch.rand(1, 3, *size), rescale_to=(20, 30))
    assert predicted["pred_masks"].shape == (1, 7, 20, 30)
    linear = segmentor("linear", vit(name), backbone_out_layers=BackboneLayersSet.LAST)
    patch = linear.segmentation_model[0].feature_model.patch_embed.patch_size[0]
    assert linear.train()(torch.rand(1, 3, *size)).shape == (1, 3, *(-(-side // patch) for side in size))
    assert linear.predict(torch.rand(1, 3, *size), rescale_to=(20, 30)).shape == (1, 3, 20, 30)


@pytest.mark.parametrize(("channels", "classes"), [(1, 1), (4, 20)])
def test_any_number_of_channels_and_classes(channels: int, classes: int):
    model = segmentor(backbone=vit(in_chans=channels), num_classes=classes)
    assert model(torch.rand(2, channels, 64, 64))["pred_logits"].shape == (2, 7, classes + 1)


def test_padding_changes_nothing_where_it_is_not_needed():
    model = segmentor().eval()
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        output, (adapter, head) = model(x), model.segmentation_model
        assert torch.equal(output["pred_masks"], head(adapter(x))["pred_masks"])


def test_a_map_of_a_padded_image_is_cropped_in_place():
    ramp = torch.arange(32.0).view(1, 1, 1, 32) + 0.5  # 128 pixels in cells of 4
    assert torch.equal(crop_extent(ramp.expand(1, 1, 32, 32), (128, 128), (128, 128)), ramp.expand(1, 1, 32, 32))
    assert torch.allclose(crop_extent(ramp, (4, 128), (4, 64)), ramp[..., :16])
    odd = crop_extent(ramp, (4, 128), (4, 97)).flatten()  # 25 cells of 3.88 pixels
    assert torch.allclose(odd, ((torch.arange(25) + 0.5) * 97 / 25 / 4).clamp(min=0.5), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cropped_map_is_in_place_in_half_precision(dtype: torch.dtype):
    columns = (torch.arange(256.0) >= 75).to(dtype).view(1, 1, 1, 256).expand(1, 1, 8, 256)  # a step at pixel 300
    cropped = crop_extent(columns, (32, 1024), (32, 1000))[0, 0, 0]
    assert cropped.dtype == dtype and int((cropped < 0.5).sum()) == 75


def test_a_vit_with_other_patches_sees_the_image_in_place():
    model = segmentor(backbone=vit("dinov2"))
    adapter, seen = model.segmentation_model[0], []
    adapter.backbone.patch_embed.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    ramp = torch.linspace(0, 1, 128).expand(1, 3, 64, 128)
    model(ramp)
    (x,) = seen
    assert x.shape == (1, 3, 56, 112)
    centres = (torch.arange(112) + 0.5) / 112  # the same place in either image
    expected = ((centres * 128 - 0.5) / 127).clamp(0, 1)
    assert torch.allclose(x[0, 0, 5], expected, atol=0.01)


def test_images_are_padded_by_their_border():
    model, seen = segmentor().eval(), []
    model.segmentation_model[0].spm.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    x = torch.rand(1, 3, 40, 33)
    model(x)
    assert seen[0].shape == (1, 3, 64, 64) and torch.equal(seen[0][..., :40, :33], x)
    assert torch.equal(seen[0][..., 50, 60], x[..., -1, -1])


def test_dropout_and_stochastic_depth_in_training_only():
    x = torch.rand(2, 3, 64, 64)
    linear = segmentor("linear", dropout=0.5).train()
    assert not torch.equal(linear(x), linear(x))
    assert torch.equal(linear.eval().predict(x), linear.predict(x))
    adapter = DINOv3_Adapter(vit(), [0, 1, 2, 3], drop_path_rate=0.5).train()
    assert any(not torch.equal(adapter(x)["2"], adapter(x)["2"]) for _ in range(5))
    assert torch.equal(adapter.eval()(x)["2"], adapter(x)["2"])


def test_what_trains_may_change_after_building():
    model = segmentor().train()
    model.segmentation_model[0].backbone.requires_grad_(True)
    model.train()
    total(model(torch.rand(1, 3, 64, 64))).backward()
    assert with_gradient(model) == {name for name, _ in model.named_parameters()}


def test_lora_on_a_plain_timm_dinov3_with_a_query_bias():
    timm_vit = timm.create_model(
        "vit_small_patch16_dinov3_qkvb", num_classes=0, embed_dim=64, depth=4, num_heads=2, dynamic_img_size=True
    )
    backbone = add_lora(timm_vit, 2, 4, 0.0, ["qkv", "proj"])
    model = segmentor(backbone=backbone, lora_enabled=True).train()
    total(model(torch.rand(1, 3, 64, 64))).backward()
    adapted = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    assert len(adapted) == 16 and all(parameter.grad is not None for parameter in adapted)
    assert any(name.endswith("rope.periods") for name in model.state_dict())


def test_frozen_only_the_rest_trains():
    model = segmentor().train()
    backbone = model.segmentation_model[0].backbone
    assert not any(module.training for module in backbone.modules())
    total(model(torch.rand(2, 3, 64, 64))).backward()
    own = {name for name, _ in model.named_parameters() if ".backbone." not in name}
    assert with_gradient(model) == own
    model.eval()
    model.train()
    assert not backbone.training and model.segmentation_model[0].spm.training


@pytest.mark.parametrize("name", ["dinov3", "dinov2"])
@pytest.mark.parametrize("decoder_type", ["m2f", "linear"])
def test_lora_trains_adapters_and_the_rest(name: str, decoder_type: str):
    backbone = add_lora(vit(name), 2, 4, 0.0, ["qkv", "proj"])
    for key, parameter in backbone.named_parameters():
        if "lora_B" in key:
            nn.init.normal_(parameter)
    model = segmentor(decoder_type, backbone, lora_enabled=True, backbone_out_layers="FOUR_EVEN_INTERVALS").train()
    total(model(torch.rand(2, 3, 64, 64))).backward()
    trunk = ("0.backbone.", "0.feature_model.")
    expected = {n for n, _ in model.named_parameters() if "lora_" in n or not any(part in n for part in trunk)}
    assert with_gradient(model) == expected
    assert all(bool(p.grad.any()) for n, p in model.named_parameters() if "lora_" in n)


@pytest.mark.parametrize("name", ["dinov3", *TIMM_VITS])
@pytest.mark.parametrize("decoder_type", ["m2f", "linear"])
def test_full_fine_tuning_trains_everything(name: str, decoder_type: str):
    model = segmentor(decoder_type, vit(name), freeze_backbone=False, backbone_out_layers="FOUR_EVEN_INTERVALS").train()
    total(model(torch.rand(2, 3, 64, 64))).backward()
    assert with_gradient(model) == {name for name, _ in model.named_parameters()}


def test_checkpointing_of_activations_changes_nothing():
    model = segmentor().train()
    model.segmentation_model[0].interactions.apply(lambda module: setattr(module, "p", 0))
    for module in model.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    x, gradients = torch.rand(1, 3, 64, 64), []
    for with_cp in (True, False):
        for module in model.modules():
            if hasattr(module, "with_cp"):
                module.with_cp = with_cp
        model.zero_grad()
        total(model(x)).backward()
        gradients.append(model.segmentation_model[0].level_embed.grad.clone())
    assert torch.allclose(*gradients, atol=1e-6)


@pytest.mark.parametrize("name", ["dinov3", "dinov2"])
def test_a_segmentor_can_be_copied_pickled_and_made_double(name: str):
    model = segmentor(backbone=vit(name)).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)["pred_masks"]
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(x)["pred_masks"], expected)
        double = model.double()(x.double())["pred_masks"]
    assert double.dtype == torch.float64 and torch.allclose(double.float(), expected, rtol=1e-3, atol=1e-3)


def test_other_models_cannot_be_a_backbone():
    with pytest.raises(ValueError, match="must be timm's Eva or VisionTransformer, found Linear"):
        segmentor(backbone=nn.Linear(1, 1))


def test_half_precision_where_it_is_asked_for():
    model = segmentor(autocast_dtype=torch.bfloat16).eval()
    output = model(torch.rand(1, 3, 64, 64))
    assert output["pred_logits"].dtype == torch.bfloat16 and bool(output["pred_masks"].isfinite().all())


@pytest.mark.parametrize(
    ("depth", "expected"), [(4, [0, 1, 2, 3]), (12, [2, 5, 8, 11]), (24, [4, 11, 17, 23]), (40, [9, 19, 29, 39])]
)
def test_sets_of_layers(depth: int, expected: list[int]):
    assert BackboneLayersSet.FOUR_EVEN_INTERVALS.indices(depth) == expected
    assert BackboneLayersSet.LAST.indices(depth) == [depth - 1]
    assert BackboneLayersSet.FOUR_LAST.indices(depth) == list(range(depth - 4, depth))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder_type": "unet"}, "decoder_type must be one of m2f, linear, found 'unet'"),
        ({"backbone_out_layers": "SOME"}, "unknown set of layers 'SOME'"),
        ({"backbone_out_layers": BackboneLayersSet.LAST}, "the adapter needs four feature layers"),
        ({"backbone_out_layers": [0, 1, 2, 9]}, "ascending block indices from 0 to 3"),
        ({"hidden_dim": 40}, "hidden_dim must be a multiple of 32"),
        ({"num_quieries": 3}, "num_quieries"),
    ],
)
def test_what_does_not_work_is_told(options: dict, message: str):
    with pytest.raises((ValueError, TypeError), match=message):
        segmentor(**options)
