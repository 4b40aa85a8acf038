"""Whole segmentors: `build_segmentation_decoder`."""

from dinov3.eval.segmentation.models.segmentor import FeatureDecoder, build_segmentation_decoder
from dinov3.models.feature_layers import BackboneLayersSet

__all__ = ["BackboneLayersSet", "FeatureDecoder", "build_segmentation_decoder"]
