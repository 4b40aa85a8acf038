"""Files that are there as a whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replace_when_complete(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; what is written to it becomes `path` at the end.

    Raises:
        OSError: it cannot be moved. Whatever is raised, nothing is left of it, and a former file is as it was.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # several processes may write the same plans
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
