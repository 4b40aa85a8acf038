"""Parameter groups and optimisers."""

from typing import Any

import torch
from torch import nn

# Modules of a timm ViT that come after its blocks and count as its last layer; all others come before the blocks.
AFTER_BLOCKS = ("norm", "fc_norm", "attn_pool", "head")


def parameter_groups(
    network: nn.Module,
    initial_lr: float,
    weight_decay: float,
    layer_decay: float | None = None,
    backbone_lr_factor: float = 1.0,
    own_warmup: bool = False,
) -> list[dict[str, Any]]:
    """Sort the trainable parameters of a network into groups, the decoder's first.

    Args:
        network: a segmentation model with a `backbone`.
        initial_lr: learning rate of the decoder.
        weight_decay: weight decay; with layer decay only on the weight matrices of the backbone, as in BEiT (Bao et al.
            2022, https://arxiv.org/abs/2106.08254): not on biases, norms, tokens and position embeddings.
        layer_decay: learning-rate multiplier from a layer to the one before it: the decoder's is `initial_lr`, that
            of the last block that trains `layer_decay * initial_lr`, and so on down to the embeddings; None: none.
        backbone_lr_factor: learning-rate multiplier of the whole backbone.
        own_warmup: whether the backbone has a warm-up of its own, and so needs groups of its own.

    Returns:
        Groups with `params`, `weight_decay`, `lr` and `initial_lr`; those of a backbone that has groups of its own have
        `is_backbone` too.
    """
    if layer_decay is None and backbone_lr_factor == 1 and not own_warmup:
        groups = [{"params": [p for p in network.parameters() if p.requires_grad], "weight_decay": weight_decay}]
    else:
        in_backbone = {id(p) for p in network.backbone.parameters()}
        decoder = [p for p in network.parameters() if p.requires_grad and id(p) not in in_backbone]
        layers = _backbone_groups(network.backbone, weight_decay, layer_decay)
        for group in layers:
            group["lr_scale"] = group.get("lr_scale", 1.0) * backbone_lr_factor
            group["is_backbone"] = True
        groups = [{"params": decoder, "weight_decay": weight_decay}, *layers]
    for group in groups:
        group["lr"] = group["initial_lr"] = initial_lr * group.pop("lr_scale", 1.0)
    return groups


def _backbone_groups(backbone: nn.Module, weight_decay: float, layer_decay: float | None) -> list[dict[str, Any]]:
    named = [(name, parameter) for name, parameter in backbone.named_parameters() if parameter.requires_grad]
    if layer_decay is None:
        return [{"params": [parameter for _, parameter in named], "weight_decay": weight_decay}]
    # timm has a function for this, but in which layer it puts the register tokens, and with them the learning rate of
    # every block, depends on its version
    depth = len(backbone.blocks)
    # blocks behind the deepest feature layer are frozen and do not count
    last = max((_layer_of(name, depth) for name, _ in named if name.startswith("blocks.")), default=depth)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in named:
        layer, decays = _layer_of(name, depth), name.endswith("weight") and parameter.ndim > 1
        empty = {
            "params": [],
            "weight_decay": weight_decay if decays else 0.0,
            "lr_scale": layer_decay ** (last + 1 - min(layer, last)),
        }
        groups.setdefault((layer, decays), empty)["params"].append(parameter)
    return list(groups.values())


def _layer_of(name: str, depth: int) -> int:
    """The layer of a parameter: 0 before the blocks, 1 to `depth` in and after them. The decoder is `depth + 1`."""
    module, _, rest = name.partition(".")
    if module == "blocks":
        return int(rest.partition(".")[0]) + 1
    return depth if module in AFTER_BLOCKS else 0


def create_optimizer(
    name: str, groups: list[dict[str, Any]], momentum: float, betas: list[float]
) -> torch.optim.Optimizer:
    """Create an optimiser.

    Args:
        name: `sgd` (with Nesterov momentum) or `adamw`.
        groups: parameter groups with their own learning rate and weight decay.
        momentum: SGD's momentum.
        betas: AdamW's betas.
    """
    if name == "sgd":
        return torch.optim.SGD(groups, momentum=momentum, nesterov=True)
    return torch.optim.AdamW(groups, betas=tuple(betas))
