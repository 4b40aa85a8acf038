"""From a configuration to a pretrained ViT."""

import logging
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dinov3.eval.segmentation.config import LoRAConfig, ModelConfig
from dinov3.hub.backbones import ARCHITECTURES, Weights, create_model
from dinov3.models.lora import ATTENTION, add_lora

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
    name = _model_name(model_config)
    pretrained = model_config.pretrained or bool(model_config.pretrained_weights)
    try:
        model: nn.Module = create_model(name, pretrained, model_config.pretrained_weights or Weights.LVD1689M)
    except ValueError as error:
        if not pretrained or model_config.pretrained_weights:
            raise
        remedy = "set pretrained_weights to a local file, or pretrained=False for random weights"
        raise ValueError(f"{error}: {remedy}") from error
    if lora_config is not None and lora_config.enabled:
        options = {key: value for key, value in asdict(lora_config).items() if key != "enabled"}
        model = add_lora(model, within=ATTENTION, **options)
    return model.to(device).eval(), {"autocast_dtype": torch.float32}


def _model_name(config: ModelConfig) -> str:
    if config.config_file is not None:
        raise ValueError(f"config_file {str(config.config_file)!r} is not supported: name the model by dino_hub")
    name = config.dino_hub
    if name is not None and name not in ARCHITECTURES:
        corrected = re.sub(r"^(dinov3_vit\w+?)14", r"\g<1>16", name)
        if corrected in ARCHITECTURES:
            logger.warning("DINOv3 has patches of 16 pixels: %s is taken as %s", name, corrected)
            return corrected
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown dino_hub {name!r}; allowed: {', '.join(ARCHITECTURES)}")
    return name
