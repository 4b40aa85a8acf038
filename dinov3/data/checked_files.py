"""Reading the size and the labels of each pair once: files that have not changed are not read again."""

import json
from pathlib import Path
from typing import Any, TypedDict

from dinov3.data.images import read_image, read_labels
from dinov3.data.pairs import ImagePair
from dinov3.files import replace_when_complete


class PairSummary(TypedDict):
    """What the checks need to know of an image and its labels.

    Attributes:
        image_size: height and width of the image.
        label_size: height and width of the labels.
        label_values: the distinct values of the labels.
    """

    image_size: list[int]
    label_size: list[int]
    label_values: list[int]


class CheckedFiles:
    """Summaries of pairs, cached in a file.

    Args:
        cache: JSON file of the summaries, created if missing. None: summaries are not saved.
        max_value: see `read_image`.
    """

    def __init__(self, cache: Path | None, max_value: float | None) -> None:
        self.cache, self.max_value = cache, max_value
        self._entries = _read_cache(cache) if cache is not None else {}

    def summary_of(self, pair: ImagePair) -> PairSummary:
        """Return the summary of a pair, from the cache unless one of the two files has changed.

        Raises:
            ImageFileError: a file cannot be read.
        """
        version = self._version_of(pair)
        entry = self._entries.get(str(pair.image), {})
        if entry.get("version") != version:
            entry = {"version": version, "summary": _summarize(pair, self.max_value)}
            self._entries[str(pair.image)] = entry
        return entry["summary"]

    def save(self) -> None:
        """Write the cache."""
        if self.cache is not None:
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            with replace_when_complete(self.cache) as path:
                path.write_text(json.dumps(self._entries), encoding="utf-8")

    def _version_of(self, pair: ImagePair) -> list[Any]:
        """Return everything that the summary of a pair depends on: if it is unchanged, the cached summary is valid.

        Missing files are skipped here, as reading them raises the error that names them.
        """
        files = [path.stat() for path in (pair.image, pair.labels) if path.is_file()]
        return [str(pair.labels), *([file.st_size, file.st_mtime_ns] for file in files), self.max_value]


def _read_cache(cache: Path) -> dict[str, Any]:
    try:
        return json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # all files are read again


def _summarize(pair: ImagePair, max_value: float | None) -> PairSummary:
    image, labels = read_image(pair.image, max_value), read_labels(pair.labels)
    return {
        "image_size": list(image.shape[1:]),
        "label_size": list(labels.shape),
        "label_values": labels.unique().tolist(),
    }
