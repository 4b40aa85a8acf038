"""Precision of a computation."""

import contextlib
import functools

import torch

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def autocast_for(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Autocast where a precision helps: on CUDA, and to bfloat16 on a CPU that computes it natively."""
    dtype = DTYPES[precision]
    helps = device.type == "cuda" or (device.type == "cpu" and dtype == torch.bfloat16 and cpu_has_bfloat16())
    return autocast_to(device, dtype if helps else torch.float32)


@functools.cache
def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 natively; elsewhere it is emulated, and slower than float32."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # older PyTorch does not tell
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def autocast_to(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager:
    """Compute in `dtype` where autocast does; float32 means without autocast (see `without_autocast`).

    Args:
        device: of the tensors.
        dtype: the precision; None leaves autocast as the caller has set it.
    """
    if dtype is None:
        return contextlib.nullcontext()
    if dtype == torch.float32 or not torch.amp.is_autocast_available(device.type):
        return without_autocast(device)
    return torch.autocast(device.type, dtype)


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Compute as the tensors are, whatever autocast says; devices that have none, such as `meta`, are left alone."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()
