"""Segmentation: Mask2Former and a linear probe on a ViT."""
