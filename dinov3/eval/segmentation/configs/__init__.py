"""Packaged configurations of segmentation."""
