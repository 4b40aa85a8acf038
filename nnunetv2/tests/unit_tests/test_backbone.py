"""Backbones: the registry, features, input channels, and weights in and out of every layout read so far."""

from pathlib import Path

import pytest
import timm
import torch
from raw_weights import meta_dinov3, randomize
from safetensors.torch import save_file

from dinov3.hub.families import VISIONFM_MODALITIES, check_backbone
from nnunetv2.model.backbone import FAMILIES, create_backbone, get_vit_features, load_backbone_weights
from nnunetv2.model.lora import enable_lora

FAMILY_NAMES = list(FAMILIES)


def tiny(family: str, **options):
    torch.manual_seed(0)
    return create_backbone(family, "tiny", **options)[0].eval()


def features(model: torch.nn.Module, image: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack(get_vit_features(model, image, [0, 3]))


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("in_chans", [1, 3, 4])
def test_features_are_normalised_maps_at_the_patch_grid(family: str, in_chans: int):
    model, patch, name = create_backbone(family, "tiny", in_chans=in_chans)
    assert name == family and patch == FAMILIES[family].patch_size
    maps = get_vit_features(model, torch.rand(2, in_chans, 3 * patch, 5 * patch), [0, 1, 2, 3])
    assert [tuple(x.shape) for x in maps] == [(2, model.embed_dim, 3, 5)] * 4
    # the final norm was applied to each: mean 0 and variance 1 over the channels of a token
    assert all(torch.allclose(x.mean(1), torch.zeros(()), atol=1e-4) for x in maps)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_prefix_tokens_begin_with_the_class_token(family: str):
    model = tiny(family)
    image = torch.rand(1, 3, 4 * model.patch_embed.patch_size[0], 4 * model.patch_embed.patch_size[0])
    ((_, prefix),) = get_vit_features(model, image, [3], return_prefix_tokens=True)
    with torch.no_grad():
        assert torch.allclose(prefix, model.forward_features(image)[:, : model.num_prefix_tokens], atol=1e-6)


@pytest.mark.integration
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_size_of_the_table_is_a_timm_model_of_that_patch_size(family: str):
    for timm_name in FAMILIES[family].timm_names.values():
        with torch.device("meta"):
            model = timm.create_model(timm_name, num_classes=0, dynamic_img_size=True)
        assert model.patch_embed.patch_size == (FAMILIES[family].patch_size,) * 2


def test_visionfm_statistics_are_means_and_deviations_of_unit_range():
    assert all(0 < v < 1 for s in VISIONFM_MODALITIES.values() for v in (*s.mean, *s.std))


def test_any_timm_vit_by_its_name():
    model, patch, _ = create_backbone("timm:vit_tiny_patch16_224", "large")
    assert patch == 16
    assert get_vit_features(model, torch.rand(1, 3, 32, 48), [5])[0].shape == (1, 192, 2, 3)


def test_features_are_normalised_where_the_final_norm_is_behind_the_pooling():
    model = create_backbone("timm:vit_little_patch16_reg1_gap_256", "large")[0].eval()
    with torch.no_grad():
        ((patches, prefix),) = get_vit_features(model, torch.rand(1, 3, 32, 48), [13], return_prefix_tokens=True)
    assert torch.allclose(patches.mean(1), torch.zeros(()), atol=1e-4)
    assert torch.allclose(patches.var(1, correction=0), torch.ones(()), atol=1e-2)
    assert torch.allclose(prefix.mean(-1), torch.zeros(()), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "size", "told"),
    [
        ("dinov4", "large", "dinov3"),
        ("dinov3", "giant", "huge_plus"),
        ("retfound", "base", "large"),
        ("timm:resnet18", "large", "resnet18"),
        ("timm:no_such_vit", "large", "no_such_vit"),
        ("timm:vit_base_patch16_224.no_such_tag", "large", "allowed: vit_base_patch16_224"),
        ("timm:vit_base_r50_s16_224", "large", "not a plain vision transformer"),
        ("timm:hf-hub:timm/vit_tiny_patch16_224", "large", "has no model"),
    ],
)
def test_unknown_backbones_are_named_with_what_is_allowed(name: str, size: str, told: str):
    with pytest.raises(ValueError, match=told):
        create_backbone(name, size)


def test_check_backbone_says_what_was_probably_meant():
    with pytest.raises(ValueError, match="did you mean 'dinov3'"):
        check_backbone("dinov", "large")


def test_random_weights_are_warned_about_once(caplog):
    tiny("dinov3")
    assert [r.levelname for r in caplog.records] == ["WARNING"] and "random" in caplog.text


# --- weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_lora", [False, True])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_timm_layout_arrives_tensor_by_tensor(family: str, suffix: str, with_lora: bool, tmp_path: Path):
    source = tiny(family)
    randomize(source)
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(source.state_dict(), path)
    target = tiny(family)
    image = torch.rand(1, 3, 4 * FAMILIES[family].patch_size, 5 * FAMILIES[family].patch_size)
    assert not torch.allclose(features(source, image), features(target, image))
    if with_lora:
        target = enable_lora(target).eval()
    load_backbone_weights(target, path)
    assert torch.equal(features(source, image), features(target, image))


@pytest.mark.parametrize("bias", [False, True])
def test_the_file_decides_on_the_query_bias(bias: bool, tmp_path: Path):
    path = meta_dinov3(bias).save(tmp_path / "dinov3.pth")
    target, _, _ = create_backbone("dinov3", "tiny", checkpoint_path=path)
    assert (target.blocks[0].attn.q_bias is not None) == bias
    if bias:
        with pytest.raises(ValueError, match="query bias"):
            load_backbone_weights(tiny("dinov3"), path)


def test_a_file_without_query_bias_stands_for_zeros(tmp_path: Path):
    path = tmp_path / "weights.pth"
    source = tiny("dinov3")
    torch.save(source.state_dict(), path)
    model = tiny("dinov3", query_bias=True)
    load_backbone_weights(model, path)
    image = torch.rand(1, 3, 48, 64)
    assert torch.allclose(features(model, image), features(source, image), atol=1e-5)


@pytest.mark.parametrize(("kept", "other"), [("small_reg", "small"), ("small", "small_reg")])
def test_registers_where_there_are_none_and_the_other_way_round(kept: str, other: str, tmp_path: Path):
    path = tmp_path / "weights.pth"
    torch.save(create_backbone("dinov2", kept)[0].state_dict(), path)
    with torch.device("meta"):
        model = create_backbone("dinov2", other)[0]
    with pytest.raises(ValueError, match=r"weights\.pth \(timm\) does not fit the backbone"):
        load_backbone_weights(model, path)


def test_rotary_periods_survive_saving_and_loading(tmp_path: Path):
    model = tiny("dinov3")
    with torch.no_grad():
        model.rope.periods.mul_(1.5)
    other = tiny("dinov3")
    other.load_state_dict(model.state_dict())
    image = torch.rand(1, 3, 48, 64)
    assert torch.equal(features(model, image), features(other, image))


def test_official_dinov2_layout_with_positions_of_another_grid(tmp_path: Path):
    source = tiny("dinov2")
    state = dict(source.state_dict(), mask_token=torch.zeros(1, source.embed_dim))
    positions = state["pos_embed"]
    state["pos_embed"] = torch.cat([positions[:, :1], torch.ones(1, 16 * 16, source.embed_dim)], dim=1)
    path = tmp_path / "dinov2.pth"
    torch.save(state, path)
    target, _, _ = create_backbone("dinov2", "tiny", checkpoint_path=path)
    assert target.pos_embed.shape == positions.shape
    assert torch.allclose(target.pos_embed[:, 1:], torch.ones(()), atol=1e-5)
    assert torch.equal(target.cls_token, source.cls_token)


@pytest.mark.parametrize("in_chans", [1, 4])
def test_patch_embedding_is_adapted_to_other_channels(in_chans: int, tmp_path: Path):
    source = tiny("dinov3")
    path = tmp_path / "weights.pth"
    torch.save(source.state_dict(), path)
    target, _, _ = create_backbone("dinov3", "tiny", checkpoint_path=path, in_chans=in_chans)
    gray = torch.rand(1, 1, 32, 32)
    expected = source.patch_embed(gray.expand(-1, 3, -1, -1))
    # equal responses to an image whose channels are all the same, up to timm's rescaling of repeated channels
    assert torch.allclose(target.patch_embed(gray.expand(-1, in_chans, -1, -1)).mean(), expected.mean(), atol=0.05)
    if in_chans == 1:
        assert torch.allclose(target.patch_embed(gray), expected, atol=1e-5)


def test_a_missing_file_is_named():
    with pytest.raises(ValueError, match=r"not found: /no/such/file\.pth"):
        create_backbone("dinov2", "tiny", checkpoint_path="/no/such/file.pth")


def test_without_network_the_remedy_is_named(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with torch.device("meta"), pytest.raises(ValueError, match=r"model\.checkpoint_path.*model\.pretrained=false"):
        create_backbone("dinov3", "small", pretrained=True)


@pytest.mark.parametrize(("family", "size"), [("retfound", "large"), ("visionfm", "base"), ("dinov3", "tiny")])
def test_imagenet_weights_never_stand_in_for_those_of_a_family(family: str, size: str):
    with torch.device("meta"), pytest.raises(ValueError, match="no pretrained weights"):
        create_backbone(family, size, pretrained=True)
