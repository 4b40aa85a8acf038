"""Pretrained weights of every origin: read a file safely, recognise its layout, fit it to a timm ViT."""
