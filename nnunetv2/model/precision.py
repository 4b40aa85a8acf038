"""The precision of a forward pass."""

import contextlib
import functools

import torch

from dinov3.eval.segmentation.precision import autocast_to

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def autocast_for(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Autocast for a precision where it helps: on CUDA, and to bfloat16 on a CPU that computes it natively."""
    dtype = DTYPES[precision]
    helps = device.type == "cuda" or (device.type == "cpu" and dtype == torch.bfloat16 and cpu_has_bfloat16())
    return autocast_to(device, dtype if helps else torch.float32)


@functools.cache
def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 natively; elsewhere it is emulated, and slower than float32."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # older PyTorch does not tell
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
