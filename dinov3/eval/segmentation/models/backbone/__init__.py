"""Backbones of segmentation: ViTs with more than their own maps."""
