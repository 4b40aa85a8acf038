"""From a configuration to a segmentor, with any ViT of the registry."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dinov3.errors import ExperimentError
from dinov3.eval.segmentation.config import LoRAConfig, ModelConfig, SegmentationConfig, config_from
from dinov3.eval.segmentation.models import FeatureDecoder, build_segmentation_decoder
from dinov3.eval.segmentation.models.from_config import segmentor_from_config
from dinov3.eval.segmentation.models.segmentor import IntermediateFeatures
from dinov3.eval.setup import load_model_and_context
from dinov3.models.features import get_vit_features

TINY = {"backbone": "dinov3", "backbone_size": "tiny", "pretrained": False}
IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def configuration(tmp_path: Path, head: dict[str, Any], **sections: Any) -> SegmentationConfig:
    values = {"model": TINY, "datasets": {"root": str(tmp_path)}, "output_dir": str(tmp_path / "results")}
    return config_from({**values, "decoder_head": {"num_classes": 5, **head}, **sections})


def linear(tmp_path: Path, **head: Any) -> FeatureDecoder:
    torch.manual_seed(0)
    return segmentor_from_config(configuration(tmp_path, {"type": "linear", **head})).eval()


def raw_features(model: FeatureDecoder, norm: bool = True) -> list[tuple[Tensor, Tensor]]:
    features = model.segmentation_model[0]
    return get_vit_features(features.feature_model, IMAGES, features.layers, return_prefix_tokens=True, norm=norm)


@pytest.mark.parametrize("backbone", ["dinov3", "dinov2", "retfound", "retfound_dinov2", "visionfm"])
def test_any_vit_of_the_registry(backbone: str):
    model, context = load_model_and_context(ModelConfig(**{**TINY, "backbone": backbone}))
    assert not model.training and context == {"autocast_dtype": torch.float32}
    segmentor = build_segmentation_decoder(model, "LAST", num_classes=5)
    assert segmentor.predict(IMAGES, rescale_to=(64, 96)).shape == (2, 5, 64, 96)


@pytest.mark.parametrize("key", ["checkpoint_path", "pretrained_weights"])
def test_weights_of_a_file(key: str, tmp_path: Path):
    model, _ = load_model_and_context(ModelConfig(**TINY))
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    loaded, _ = load_model_and_context(ModelConfig(**{**TINY, key: tmp_path / "vit.pth"}))
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth"):
        load_model_and_context(ModelConfig(**{**TINY, key: tmp_path / "other.pth"}))


def test_two_names_of_a_vit_are_told():
    with pytest.raises(ValueError, match="dino_hub and backbone both name a model"):
        load_model_and_context(ModelConfig(**TINY, dino_hub="dinov3_vits16"))


def test_mask2former_of_a_configuration(tmp_path: Path):
    head = {"type": "m2f", "backbone_out_layers": "FOUR_EVEN_INTERVALS", "hidden_dim": 32, "num_queries": 7}
    model = segmentor_from_config(configuration(tmp_path, head, lora={"enabled": True, "r": 2}))
    output = model(IMAGES)
    assert output["pred_masks"].shape == (2, 7, 16, 24) and output["pred_logits"].shape == (2, 7, 6)
    of_vit = [name for name, p in model.segmentation_model[0].backbone.named_parameters() if p.requires_grad]
    assert of_vit and all("lora_" in name for name in of_vit)


def test_a_vit_of_the_callers_gets_adapters_once(tmp_path: Path):
    config = configuration(tmp_path, {"type": "linear"}, lora={"enabled": True, "r": 2})
    plain, _ = load_model_and_context(config.model)
    adapted, _ = load_model_and_context(config.model, lora_config=LoRAConfig(enabled=True, r=2))
    names = [segmentor_from_config(config, backbone).state_dict().keys() for backbone in (plain, adapted, None)]
    assert names[0] == names[1] == names[2] and any("lora_A" in name for name in names[0])


def test_the_class_token_is_joined_to_every_patch(tmp_path: Path):
    model = linear(tmp_path, use_cls_token=True, use_batchnorm=False)
    (patches, prefix) = raw_features(model)[0]
    token = prefix[:, 0, :, None, None].expand(-1, -1, *patches.shape[-2:])
    conv = model.segmentation_model[1].conv
    assert conv.in_channels == 2 * 96
    with torch.no_grad():
        assert torch.allclose(model(IMAGES), conv(torch.cat([patches, token], dim=1)), atol=1e-5)
        predicted = model.predict(IMAGES, rescale_to=(4, 6))
    assert torch.allclose(predicted, model(IMAGES), atol=1e-5)


@pytest.mark.parametrize("norm", [True, False])
def test_the_final_norm_of_the_features(norm: bool, tmp_path: Path):
    model = linear(tmp_path, use_backbone_norm=norm, use_batchnorm=False)
    same, other = (raw_features(model, norm=value)[0][0] for value in (norm, not norm))
    with torch.no_grad():
        logits, conv = model(IMAGES), model.segmentation_model[1].conv
        assert torch.allclose(logits, conv(same), atol=1e-5)
        assert not torch.allclose(logits, conv(other), atol=1e-3)


@pytest.mark.parametrize("use_batchnorm", [True, False])
def test_the_batch_norm_of_the_head(use_batchnorm: bool, tmp_path: Path):
    model = linear(tmp_path, use_batchnorm=use_batchnorm)
    assert any("batchnorm_layer.running_mean" in name for name in model.state_dict()) == use_batchnorm


def test_a_vit_without_a_class_token_is_told(tmp_path: Path):
    config = configuration(tmp_path, {"type": "linear", "use_cls_token": True})
    backbone, _ = load_model_and_context(config.model)
    backbone.cls_token = None
    with pytest.raises(ExperimentError, match="use_cls_token: this ViT has no class token"):
        segmentor_from_config(config, backbone)


def test_mask2former_reads_normalised_patches_only():
    backbone, _ = load_model_and_context(ModelConfig(**TINY))
    for options in ({"use_cls_token": True}, {"use_backbone_norm": False}):
        with pytest.raises(ValueError, match="Mask2Former reads normalised features without the class token"):
            build_segmentation_decoder(backbone, decoder_type="m2f", hidden_dim=32, **options)


def test_a_configuration_without_a_vit_is_told(tmp_path: Path):
    config = configuration(tmp_path, {"type": "linear"})
    config.model = None
    with pytest.raises(ExperimentError, match="cannot be built as configured: unknown dino_hub None; allowed: dinov3_"):
        segmentor_from_config(config)


def test_targets_of_adapters_that_are_not_there_are_told(tmp_path: Path):
    config = configuration(tmp_path, {"type": "linear"}, lora={"enabled": True, "target_modules": ["query"]})
    with pytest.raises(ExperimentError, match=r"as configured: LoRA targets \['query'\] match no layer"):
        segmentor_from_config(config)


def test_a_segmentor_of_a_configuration_computes_as_autocast_says(tmp_path: Path):
    model, backbone = linear(tmp_path), load_model_and_context(ModelConfig(**TINY))[0]
    of_its_own = build_segmentation_decoder(backbone, "LAST", num_classes=5)
    assert model(IMAGES).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert model(IMAGES).dtype == torch.bfloat16
        assert of_its_own(IMAGES).dtype == torch.float32
    assert isinstance(model.segmentation_model[0], IntermediateFeatures)
