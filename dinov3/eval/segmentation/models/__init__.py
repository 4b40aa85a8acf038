"""Whole segmentors: `build_segmentation_decoder`."""

from dinov3.eval.segmentation.models.segmentor import BackboneLayersSet, FeatureDecoder, build_segmentation_decoder

__all__ = ["BackboneLayersSet", "FeatureDecoder", "build_segmentation_decoder"]
