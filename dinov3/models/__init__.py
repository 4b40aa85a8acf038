"""The DINOv3 vision transformer: timm's model, made equal to the reference."""
