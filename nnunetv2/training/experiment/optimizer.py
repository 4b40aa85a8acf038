"""Parameter groups and optimisers."""

from typing import Any

import torch
from timm.optim import param_groups_layer_decay
from torch import nn


def parameter_groups(
    network: nn.Module,
    initial_lr: float,
    weight_decay: float,
    layer_decay: float | None = None,
    backbone_lr_factor: float = 1.0,
) -> list[dict[str, Any]]:
    """Sort the trainable parameters of a network into groups, the decoder's first.

    Args:
        network: a segmentation model with a `backbone`.
        initial_lr: learning rate of the decoder.
        weight_decay: weight decay; with layer decay not on biases, norms and embeddings of the backbone, as in BEiT.
        layer_decay: factor per layer on the backbone's learning rate, counted from its last block; None: none.
        backbone_lr_factor: factor on the learning rate of the whole backbone.

    Returns:
        Groups with `params`, `weight_decay`, `lr` and `initial_lr`.
    """
    if layer_decay is None and backbone_lr_factor == 1:
        groups = [{"params": [p for p in network.parameters() if p.requires_grad], "weight_decay": weight_decay}]
    else:
        in_backbone = {id(p) for p in network.backbone.parameters()}
        decoder = [p for p in network.parameters() if p.requires_grad and id(p) not in in_backbone]
        layers = _backbone_groups(network.backbone, weight_decay, layer_decay)
        for group in layers:
            group["lr_scale"] = group.get("lr_scale", 1.0) * backbone_lr_factor
        groups = [{"params": decoder, "weight_decay": weight_decay}, *layers]
    for group in groups:
        group["lr"] = group["initial_lr"] = initial_lr * group.pop("lr_scale", 1.0)
    return groups


def _backbone_groups(backbone: nn.Module, weight_decay: float, layer_decay: float | None) -> list[dict[str, Any]]:
    if layer_decay is None:
        return [{"params": [p for p in backbone.parameters() if p.requires_grad], "weight_decay": weight_decay}]
    return param_groups_layer_decay(
        backbone, weight_decay, no_weight_decay_list=backbone.no_weight_decay(), layer_decay=layer_decay
    )


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
