"""Where weights stand that Hugging Face saved to a folder, in one file or in shards. Nothing heavy is imported here."""

import json
from pathlib import Path

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class ShardError(ValueError):
    """A folder, an index or a shard of weights is not as it must be; the message says what is wrong with it."""


def find_in_folder(folder: Path) -> Path:
    """Return the file of weights in a folder: `model.safetensors`, or the index of its shards.

    Raises:
        ShardError: the folder has neither, or both.
    """
    found = [folder / name for name in (SINGLE_FILE, INDEX_FILE) if (folder / name).is_file()]
    if len(found) != 1:
        has = "both; pass one of them" if found else "neither"
        raise ShardError(f"a folder of weights holds {SINGLE_FILE} or {INDEX_FILE}, this one holds {has}")
    return found[0]


def read_index(index: Path) -> dict[Path, list[str]]:
    """Read the index of shards: a JSON file with, under `weight_map`, the name of the shard of each tensor.

    Args:
        index: the file.

    Returns:
        The path of each shard to the names of its tensors.

    Raises:
        ShardError: it is no such file, or names a shard that is not beside it.
    """
    try:
        content = json.loads(index.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # neither text nor JSON
        raise ShardError("it is not valid JSON, as an index of shards is") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ShardError("it is no index of shards: it has no weight_map from tensors to files")
    shards: dict[Path, list[str]] = {}
    for tensor, shard in weight_map.items():
        # a file beside the index, nothing else on the disk
        if not isinstance(shard, str) or shard in ("", "..") or Path(shard).name != shard or "\\" in shard:
            raise ShardError(f"its shards must be names of files beside it, found {shard!r}")
        shards.setdefault(index.parent / shard, []).append(tensor)
    for shard in shards:
        if not shard.is_file():
            raise ShardError(f"its shard {shard.name!r} is missing")
    return shards
