"""Read files of weights; nothing that stands in a file is ever executed."""

import argparse
import pathlib
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

try:  # NumPy 2
    from numpy._core.multiarray import scalar
except ImportError:
    from numpy.core.multiarray import scalar

# What checkpoints carry beside tensors (arguments of the training, best scores so far) and what can do no harm.
HARMLESS = [
    argparse.Namespace,
    pathlib.PosixPath,
    (scalar, "numpy.core.multiarray.scalar"),
    (scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("bool", "int32", "int64", "float16", "float32", "float64")),
]


def read_checkpoint(path: str | Path) -> Any:
    """Read a `.safetensors` or PyTorch file, which of the two is told by its content.

    Args:
        path: the file.

    Returns:
        What it holds, tensors on the CPU.

    Raises:
        ValueError: there is no such file, it is damaged, or it holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"weight file not found: {path}")
    try:
        start = path.open("rb").read(9)
        if not start:
            raise ValueError(f"cannot read {path} as a file of weights: it is empty")
        if start[8:] == b"{":  # a safetensors file: 8 bytes of length, then JSON
            return load_file(path)
        is_zip = zipfile.is_zipfile(path)
        if start[:2] == b"PK" and not is_zip:
            raise ValueError(f"cannot read {path} as a file of weights: it is cut short")
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError) as error:
        raise ValueError(f"cannot read {path} as a file of weights: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    foreign = re.search(r"GLOBAL (\S+)", str(error))
    if foreign:
        return f"it holds Python objects ({foreign[1]}), and loading such could run code; save its tensors alone"
    return (str(error).splitlines() or [type(error).__name__])[0]
