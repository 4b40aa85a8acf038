"""Models by name, with weights and adapters."""

import logging
import time
from pathlib import Path

import pytest
import torch

from dinov3.eval.segmentation.config import LoRAConfig
from dinov3.eval.setup import ModelConfig, load_model_and_context
from dinov3.hub import backbones

IMAGE = torch.rand(1, 3, 32, 32)


@pytest.fixture
def weights(tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """A file with the names of the official ones, and what its model gives."""
    torch.manual_seed(0)
    model = backbones.dinov3_vits16(pretrained=False).eval()
    torch.save(model.to_reference_state_dict(), tmp_path / "dinov3_vits16.pth")
    return tmp_path / "dinov3_vits16.pth", model(IMAGE)


def test_weights_of_a_file(weights: tuple[Path, torch.Tensor]):
    path, expected = weights
    config = ModelConfig(pretrained_weights=str(path), dino_hub="dinov3_vits16", pretrained=False)
    model, context = load_model_and_context(config, "unused")
    assert not model.training and context == {"autocast_dtype": torch.float32}
    assert torch.equal(model(IMAGE), expected)
    assert torch.equal(backbones.dinov3_vits16(weights=path).eval()(IMAGE), expected)


def test_wrong_files_are_told(weights: tuple[Path, torch.Tensor]):
    with pytest.raises(ValueError, match="does not fit"):
        load_model_and_context(ModelConfig(pretrained_weights=weights[0], dino_hub="dinov3_vitb16"))
    with pytest.raises(ValueError, match="missing.pth"):
        load_model_and_context(ModelConfig(pretrained_weights="missing.pth", dino_hub="dinov3_vits16"))


def test_offline_without_a_file():
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"pretrained_weights.*pretrained=False"):
        load_model_and_context(ModelConfig(dino_hub="dinov3_vits16"))
    assert time.monotonic() - start < 10


def test_patches_of_fourteen_are_a_slip(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        model, _ = load_model_and_context(ModelConfig(dino_hub="dinov3_vits14", pretrained=False))
    assert model.patch_size == 16 and "dinov3_vits14 is taken as dinov3_vits16" in caplog.text


@pytest.mark.parametrize("name", ["dinov3_vitx16", "dinov2_vits14", "", None])
def test_other_names_are_told(name: str | None):
    with pytest.raises(ValueError, match=r"unknown dino_hub .* allowed: dinov3_vits16, .*dinov3_vit7b16"):
        load_model_and_context(ModelConfig(dino_hub=name, pretrained=False))


def test_what_is_not_published_is_told():
    with pytest.raises(ValueError, match="no published weights LVD1689M of dinov3_vitl16plus"):
        backbones.create_model("dinov3_vitl16plus", embed_dim=64, depth=1, num_heads=2)
    with pytest.raises(ValueError, match="no published weights SAT493M of dinov3_vits16"):
        backbones.dinov3_vits16(weights=backbones.Weights.SAT493M)
    with pytest.raises(ValueError, match="config_file"):
        load_model_and_context(ModelConfig(config_file="config.yaml"))
    with pytest.raises(ValueError, match="could not be downloaded"):
        backbones.dinov3_vits16(weights="https://localhost:1/dinov3_vits16.pth")


def test_adapters_are_in_the_attention_only():
    config = ModelConfig(dino_hub="dinov3_vits16", pretrained=False)
    model, _ = load_model_and_context(config, lora_config=LoRAConfig(enabled=True, r=2))
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    blocks = (f"base_model.model.blocks.{i}.attn.{part}" for i in range(12) for part in ("qkv", "proj"))
    assert adapted == set(blocks)
    assert all(("lora_" in name) == parameter.requires_grad for name, parameter in model.named_parameters())
    assert isinstance(load_model_and_context(config, lora_config=LoRAConfig())[0], backbones.DinoVisionTransformer)
    with pytest.raises(ValueError, match=r"match no layer of the blocks; allowed: \['proj', 'qkv'\]"):
        load_model_and_context(config, lora_config=LoRAConfig(enabled=True, target_modules=["fc1"]))
