"""Precision of a computation."""

import contextlib

import torch


def autocast_to(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Compute in `dtype` where autocast does; float32 means without autocast (see `without_autocast`)."""
    if dtype == torch.float32 or not torch.amp.is_autocast_available(device.type):
        return without_autocast(device)
    return torch.autocast(device.type, dtype)


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Compute as the tensors are, whatever autocast says; devices that have none, such as `meta`, are left alone."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()
