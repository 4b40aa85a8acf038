"""From a configuration to a segmentor."""

from dataclasses import asdict

from torch import nn

from dinov3.errors import ExperimentError
from dinov3.eval.segmentation.config import ModelConfig, SegmentationConfig
from dinov3.eval.segmentation.models.segmentor import FeatureDecoder, build_segmentation_decoder
from dinov3.eval.setup import load_model_and_context, with_lora


def segmentor_from_config(config: SegmentationConfig, backbone: nn.Module | None = None) -> FeatureDecoder:
    """Build the segmentor of a configuration; it computes in what autocast says around its calls.

    The ViT is frozen but for its adapters, where `lora.enabled`.

    Args:
        config: the configuration.
        backbone: the ViT, with or without adapters; by default that of `config.model`, with its weights.

    Raises:
        ExperimentError: the ViT or its weights are not available, or ViT and decoder do not fit.
    """
    options = asdict(config.decoder_head)
    try:
        if backbone is None:
            backbone, _ = load_model_and_context(config.model or ModelConfig())
        return build_segmentation_decoder(
            with_lora(backbone, config.lora),
            decoder_type=options.pop("type"),
            autocast_dtype=None,
            lora_enabled=config.lora.enabled,
            **options,
        )
    except ValueError as error:
        raise ExperimentError(f"the segmentor cannot be built as configured: {error}") from error
