"""The backbones over which the tests of decoders run: one of each tiny network.

Families whose tiny network is the same differ in weights, licence and statistics only, which their own tests cover.
"""

NETWORKS = ("dinov3", "dinov2", "retfound", "timm:test_vit")
# Per family that is not among them, the one that has its network.
SAME_NETWORK = {"retfound_dinov2": "dinov2", "visionfm": "retfound"}
