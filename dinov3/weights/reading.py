"""Read files of weights; nothing that stands in a file is ever executed."""

import argparse
import pathlib
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
    *(
        type(np.dtype(kind))
        for kind in ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
    ),
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
    try:
        if not path.is_file():
            raise FileNotFoundError
        return _read(path)
    except FileNotFoundError as error:
        raise ValueError(f"weight file not found: {path}") from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can make the readers raise anything
        raise ValueError(f"cannot read {path} as a file of weights: {_reason(error)}") from error


def _read(path: Path) -> Any:
    start = path.open("rb").read(9)
    if not start:
        raise EOFError("it is empty")
    if start[8:] == b"{":  # a safetensors file: 8 bytes of length, then JSON
        return load_file(path)
    is_zip = zipfile.is_zipfile(path)
    if start[:2] == b"PK" and not is_zip:
        raise EOFError("it is cut short")
    with torch.serialization.safe_globals(HARMLESS):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)


def _reason(error: Exception) -> str:
    text = str(error)
    foreign = re.search(r"GLOBAL (\S+)", text)
    if foreign:
        return f"it holds Python objects ({foreign[1]}), and loading such could run code; save its tensors alone"
    if "TorchScript" in text:
        return "it is a TorchScript archive; save its state_dict() instead"
    if isinstance(error, (SafetensorError, OSError, EOFError)) and text:
        return text.splitlines()[0]
    # PyTorch's own words would advise to read it unsafely
    return "it is neither a safetensors nor a PyTorch file of tensors, or it is damaged"
