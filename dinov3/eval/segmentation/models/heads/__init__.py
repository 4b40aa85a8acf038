"""Heads of segmentation: from maps to classes."""
