"""Data sets for segmentation: finding, checking, reading and loading pairs of an image and its labels."""
