"""Files that are there as a whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4


@contextlib.contextmanager
def replace_when_complete(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; what is written to it becomes `path` at the end.

    Raises:
        OSError: it cannot be moved. Whatever is raised, nothing is left of it, and an existing file is unchanged.
    """
    # several processes, also on other machines, may write the same plans
    temporary = path.with_name(f"{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
