"""What is known of the files of a data set, remembered as long as they stay as they are."""

import json
from pathlib import Path
from typing import Any, TypedDict

from dinov3.data.images import read_image, read_labels
from dinov3.data.pairs import ImagePair
from dinov3.files import replace_when_complete


class Facts(TypedDict):
    """What has been read of a pair.

    Attributes:
        image: height and width of the image.
        labels: height and width of the labels.
        values: the labels that there are.
    """

    image: list[int]
    labels: list[int]
    values: list[int]


class CheckedFiles:
    """The facts of pairs that have been read before and of which neither file has changed since.

    Args:
        memory: a JSON file that keeps them; it need not be there. None keeps nothing.
        max_value: see `read_image`.
    """

    def __init__(self, memory: Path | None, max_value: float | None) -> None:
        self.memory, self.max_value = memory, max_value
        self._entries = _entries_in(memory) if memory is not None else {}

    def facts_of(self, pair: ImagePair) -> Facts:
        """Return the facts of a pair, from the memory or the files.

        Raises:
            ImageFileError: a file cannot be read.
        """
        stamp = self._stamp(pair)
        entry = self._entries.get(str(pair.image))
        if entry is None or entry["stamp"] != stamp:
            entry = {"stamp": stamp, "facts": _read(pair, self.max_value)}
            self._entries[str(pair.image)] = entry
        return entry["facts"]

    def save(self) -> None:
        """Write the memory."""
        if self.memory is not None:
            self.memory.parent.mkdir(parents=True, exist_ok=True)
            with replace_when_complete(self.memory) as path:
                path.write_text(json.dumps(self._entries), encoding="utf-8")

    def _stamp(self, pair: ImagePair) -> list[Any]:
        """What is the same as long as the facts are; of missing files, which reading will tell of, nothing is."""
        files = [path.stat() for path in (pair.image, pair.labels) if path.is_file()]
        return [str(pair.labels), *([file.st_size, file.st_mtime_ns] for file in files), self.max_value]


def _entries_in(memory: Path) -> dict[str, Any]:
    try:
        return json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # all files are read again


def _read(pair: ImagePair, max_value: float | None) -> Facts:
    image, labels = read_image(pair.image, max_value), read_labels(pair.labels)
    return {"image": list(image.shape[1:]), "labels": list(labels.shape), "values": labels.unique().tolist()}
