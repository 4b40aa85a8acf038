"""The architecture of a network in words, short enough for a training log."""

import re
from collections.abc import Iterator

from torch import nn

from dinov3.hub.families import TIMM_PREFIX

BLOCK = re.compile(r"blocks\.\d+\.")


def describe_architecture(network: nn.Module, backbone_name: str, backbone_size: str) -> str:
    """Describe a network: its backbone in one line, its LoRA layers by kind, and the `repr` of everything else.

    Args:
        network: a `ViTSegmentationModel`.
        backbone_name: a family of the registry, or `timm:<name>`.
        backbone_size: a size of the family; not used with `timm:<name>`.
    """
    name = backbone_name if backbone_name.startswith(TIMM_PREFIX) else f"{backbone_name} {backbone_size}"
    parts = [f"{part_name}: {part}" for part_name, part in network.named_children() if part_name != "backbone"]
    return "\n".join([_describe_backbone(network.backbone, name), *_describe_lora(network.backbone), *parts])


def _describe_backbone(backbone: nn.Module, name: str) -> str:
    vit = backbone.get_base_model() if hasattr(backbone, "get_base_model") else backbone  # peft wraps it
    height, width = vit.patch_embed.patch_size
    return (
        f"backbone: {type(vit).__name__} {name}, {len(vit.blocks)} blocks, embed_dim {vit.embed_dim}, "
        f"patch {height}{'' if height == width else f' × {width}'}"
    )


def _describe_lora(backbone: nn.Module) -> Iterator[str]:
    """Yield a line for the adapted layers that bear the same name in every block: their number, and one of them."""
    kinds: dict[str, list[nn.Module]] = {}
    for name, module in backbone.named_modules():
        if hasattr(module, "lora_A"):
            kinds.setdefault(BLOCK.split(name)[-1], []).append(module)
    for kind, layers in kinds.items():
        yield f"LoRA: {len(layers)} layers {kind}, each {layers[0]}"
