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

from dinov3.weights.sharded import ShardError, find_in_folder, read_index

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
    """Read a `.safetensors` or PyTorch file, which of the two is told by its content, or weights in several shards.

    Args:
        path: the file, the index of its shards (`….json`), or a folder that holds `model.safetensors` or its index.

    Returns:
        What it holds, tensors on the CPU. Those of `.safetensors` files and of PyTorch's zip files are mapped to
        memory: they are read when they are used.

    Raises:
        ValueError: there is no such file, it is damaged, or it holds more than tensors and plain values.
    """
    path = Path(path)
    try:
        file = find_in_folder(path) if path.is_dir() else path
        if not file.is_file():
            raise FileNotFoundError
        return _read_shards(file) if file.suffix == ".json" else _read(file)
    except FileNotFoundError as error:
        raise ValueError(f"weight file not found: {path}") from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can make the readers raise anything
        raise ValueError(f"cannot read {path} as a file of weights: {_reason(error)}") from error


def _read_shards(index: Path) -> dict[str, Any]:
    shards = read_index(index)
    placed = {name for names in shards.values() for name in names}
    tensors: dict[str, Any] = {}
    for shard, names in shards.items():
        content = _read_shard(shard)
        missing = [name for name in names if name not in content]
        if missing:
            raise ShardError(f"its shard {shard.name!r} lacks {len(missing)} of its tensors, such as {missing[0]}")
        # what the index does not name is taken too: a tensor too many is told, not dropped
        tensors.update({name: content[name] for name in content if name in names or name not in placed})
    return tensors


def _read_shard(path: Path) -> dict[str, Any]:
    try:
        content = _read(path)
    except MemoryError:
        raise
    except Exception as error:  # as in `read_checkpoint`
        raise ShardError(f"its shard {path.name!r} cannot be read: {_reason(error)}") from error
    if not isinstance(content, dict):
        raise ShardError(f"its shard {path.name!r} holds no dictionary of tensors")
    return content


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(9)
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
    if isinstance(error, (ShardError, SafetensorError, OSError, EOFError)) and text:
        return text.splitlines()[0]
    # PyTorch's own words would advise to read it unsafely
    return "it is neither a safetensors nor a PyTorch file of tensors, or it is damaged"
