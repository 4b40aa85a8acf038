"""What of a backbone trains."""

from torch import nn


def freeze(backbone: nn.Module, lora_enabled: bool, freeze_backbone: bool) -> None:
    """Stop the training of a backbone, or of all but its adapters' matrices.

    Args:
        backbone: the backbone, with or without adapters of peft.
        lora_enabled: keep the adapters' matrices (`lora_`) trainable, and nothing else.
        freeze_backbone: without adapters: stop the training of everything; otherwise nothing is changed.
    """
    if lora_enabled or freeze_backbone:
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(lora_enabled and "lora_" in name)


def trains(backbone: nn.Module) -> bool:
    """Whether anything of a backbone trains."""
    return any(parameter.requires_grad for parameter in backbone.parameters())
