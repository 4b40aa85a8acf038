"""Files of one JSON object per line, which a killed process may leave with half a line at the end."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dinov3.files import replace_when_complete


class JsonLines:
    """A log of steps: objects with a key `step`, in ascending order.

    Args:
        path: the file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write rows at the end; they are on the disk when this returns, so that a checkpoint can rely on them."""
        with self.path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield all rows, up to one that is not complete."""
        if not self.path.is_file():
            return
        with self.path.open() as file:
            for line in file:
                try:
                    row = json.loads(line)
                except ValueError:
                    return
                if not line.endswith("\n"):
                    return
                yield row

    def drop_after(self, step: int) -> None:
        """Drop the rows of later steps, and one that is not complete."""
        if not self.path.is_file():
            return
        with replace_when_complete(self.path) as temporary, temporary.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in self.rows() if row["step"] <= step)
