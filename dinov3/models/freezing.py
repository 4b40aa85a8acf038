"""What of a backbone trains. One that is frozen gets no graph by itself, as no parameter of it asks for a gradient."""

from torch import nn


def freeze(backbone: nn.Module, lora_enabled: bool, freeze_backbone: bool) -> None:
    """Freeze a backbone, or all but its adapters' matrices.

    Args:
        backbone: the backbone, with or without adapters of peft.
        lora_enabled: keep the adapters' matrices (`lora_`) trainable, and nothing else.
        freeze_backbone: without adapters: freeze everything; otherwise nothing is changed.
    """
    if lora_enabled or freeze_backbone:
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(lora_enabled and "lora_" in name)


def trains(backbone: nn.Module) -> bool:
    """Whether anything of a backbone trains."""
    return any(parameter.requires_grad for parameter in backbone.parameters())


def eval_if_frozen(backbone: nn.Module) -> None:
    """Put a backbone of which nothing trains into evaluation mode: no dropout, no stochastic depth."""
    if not trains(backbone):
        backbone.eval()
