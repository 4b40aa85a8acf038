"""From a configuration to a pretrained ViT."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dinov3.eval.segmentation.config import LoRAConfig, ModelConfig
from dinov3.hub.architectures import find_architecture
from dinov3.hub.backbones import create_model
from dinov3.hub.registry import create_backbone
from dinov3.models.lora import ATTENTION, add_lora
from dinov3.weights.hub import download_url

logger = logging.getLogger(__name__)


def load_model_and_context(
    model_config: ModelConfig,
    output_dir: str | Path | None = None,
    lora_config: LoRAConfig | None = None,
    device: torch.device | str = "cpu",
) -> tuple[nn.Module, dict[str, Any]]:
    """Create a ViT and load its weights.

    Args:
        model_config: which one.
        output_dir: not read; kept for the reference's callers.
        lora_config: adapters of its attention, where they are enabled.
        device: where to put it.

    Returns:
        The ViT, in evaluation mode, and `{"autocast_dtype": dtype}`, the precision to compute in.

    Raises:
        ValueError: an unknown name, or weights that are not available or do not fit.
    """
    if model_config.config_file is not None:
        name = str(model_config.config_file)
        raise ValueError(f"config_file {name!r} is not supported: name the model by dino_hub or backbone")
    if model_config.dino_hub is not None and model_config.backbone is not None:
        raise ValueError("dino_hub and backbone both name a model: set one of them")
    path = _local_file(model_config.checkpoint_path or model_config.pretrained_weights)
    model = _of_registry(model_config, path) if model_config.backbone else _of_hub(model_config, path)
    if lora_config is not None:
        model = with_lora(model, lora_config)
    return model.to(device).eval(), {"autocast_dtype": torch.float32}


def with_lora(model: nn.Module, lora_config: LoRAConfig) -> nn.Module:
    """Add the adapters of a configuration to the attention of a ViT, where they are enabled and not there yet.

    Raises:
        ValueError: a target matches no layer.
    """
    if not lora_config.enabled or hasattr(model, "peft_config"):
        return model
    options = {key: value for key, value in asdict(lora_config).items() if key != "enabled"}
    return add_lora(model, within=ATTENTION, **options)


def _local_file(path: str | Path | None) -> Path | None:
    if not path:
        return None
    return download_url(str(path)) if str(path).startswith(("http:", "https:")) else Path(path)


def _of_registry(config: ModelConfig, path: Path | None) -> nn.Module:
    return create_backbone(config.backbone, config.backbone_size, path, config.pretrained)[0]


def _of_hub(config: ModelConfig, path: Path | None) -> nn.Module:
    name = find_architecture(config.dino_hub)
    if name != config.dino_hub:
        logger.warning("DINOv3 has patches of 16 pixels: %s is taken as %s", config.dino_hub, name)
    if path is not None:
        return create_model(name, weights=path)
    try:
        return create_model(name, config.pretrained)
    except ValueError as error:
        remedy = "set pretrained_weights to a local file, or pretrained=False for random weights"
        raise ValueError(f"{error}: {remedy}") from error
