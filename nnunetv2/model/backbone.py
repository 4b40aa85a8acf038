"""The registry of pretrained ViTs, which `dinov3.hub.registry` holds, under the names that decoders import."""

from dinov3.hub.families import FAMILIES, BackboneFamily
from dinov3.hub.registry import (
    create_backbone,
    find_pretrained_weights,
    load_backbone_weights,
    load_pretrained_weights,
    load_weights,
    timm_statistics,
    weights_follow,
)
from dinov3.models.features import get_vit_features
from nnunetv2.model.upsample import ProgressiveUpsampler

__all__ = [
    "FAMILIES",
    "BackboneFamily",
    "ProgressiveUpsampler",
    "create_backbone",
    "find_pretrained_weights",
    "get_vit_features",
    "load_backbone_weights",
    "load_pretrained_weights",
    "load_weights",
    "timm_statistics",
    "weights_follow",
]
