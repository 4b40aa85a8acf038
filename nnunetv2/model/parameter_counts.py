"""How many parameters a module has, and how many of them train."""

from torch import nn


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """Return the numbers of all and of trainable parameters of a module."""
    parameters = list(module.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def count_parameters_per_part(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Return these numbers per direct submodule that has parameters, and last those of the whole as `total`.

    The decoder of nnU-Net's U-Net refers to its encoder: what two submodules share counts for the first.
    """
    counted: set[int] = set()
    parts: dict[str, tuple[int, int]] = {}
    for name, part in module.named_children():
        parameters = [p for p in part.parameters() if id(p) not in counted]
        counted.update(map(id, parameters))
        parts[name] = (sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad))
    return {**{name: counts for name, counts in parts.items() if counts[0]}, "total": count_parameters(module)}
