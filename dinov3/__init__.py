"""DINOv3 in the reference's interface, on top of timm; knows nothing of nnU-Net."""
