"""Settings of segmentation: their defaults, and that OmegaConf merges them."""

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, ValidationError

from dinov3.eval import setup
from dinov3.eval.segmentation.config import ModelConfig, ModelDtype, SegmentationConfig
from dinov3.models.feature_layers import BackboneLayersSet


@pytest.fixture
def origins(golden: Path) -> dict[str, Any]:
    """What the reference and the fork set."""
    return json.loads((golden / "config_defaults.json").read_text())


def merged(*changes: Any) -> SegmentationConfig:
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SegmentationConfig), *changes))


def check_agrees(found: Any, expected: Any, name: str = "") -> None:
    """Compare what is expected, with names for the members of enumerations."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            check_agrees(found[key], value, f"{name}.{key}")
    else:
        assert getattr(found, "name", found) == expected, name


@pytest.mark.parametrize("origin", ["reference_defaults", "user_fork"])
def test_the_defaults_are_those_of_the_reference_and_the_fork(origins: dict, origin: str):
    expected = origins[origin]["SegmentationConfig"]
    assert expected["datasets"].pop("root") == "MISSING"
    if origin == "user_fork":  # has none, which its default mode `slide` cannot do without
        expected["eval"] |= {"crop_size": 512, "stride": 341}
    check_agrees(OmegaConf.to_container(OmegaConf.structured(SegmentationConfig)), expected)


def test_the_forks_configuration_is_merged_into_the_defaults(origins: dict):
    changes = origins["user_fork"]["training_config_lora_1"]
    config = merged({"datasets": {"root": "images"}}, changes, OmegaConf.from_dotlist(["optimizer.lr=0.01", "bs=3"]))
    assert config.optimizer.lr == 0.01 and config.bs == 3 and config.datasets.root == "images"
    assert config.model_dtype is ModelDtype.BFLOAT16
    assert config.decoder_head.backbone_out_layers is BackboneLayersSet.FOUR_EVEN_INTERVALS
    changes["optimizer"]["lr"], changes["bs"] = 0.01, 3
    check_agrees(OmegaConf.to_container(OmegaConf.structured(config)), changes)


def test_the_model_is_named_by_overrides():
    config = merged({"datasets": {"root": "images"}}, OmegaConf.from_dotlist(["model.dino_hub=dinov3_vitl16"]))
    assert config.model == ModelConfig(dino_hub="dinov3_vitl16") and setup.ModelConfig is ModelConfig


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({}, MissingMandatoryValue),
        ({"eval": {"tile": 3}}, ConfigKeyError),
        ({"bs": "two"}, ValidationError),
        ({"decoder_head": {"backbone_out_layers": "ALL"}}, ValidationError),
        ({"model_dtype": "FLOAT16"}, ValidationError),
    ],
)
def test_what_cannot_be_is_refused(changes: dict, error: type[Exception]):
    with pytest.raises(error):
        merged(changes)
