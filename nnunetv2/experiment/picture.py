"""Pictures as files that are there as a whole or not at all."""

import os
from pathlib import Path

from matplotlib.figure import Figure


def save_picture(figure: Figure, path: Path, dpi: int) -> None:
    """Write a PNG file to a temporary name and move it into place.

    Raises:
        OSError: it cannot be written; nothing is left of it, and a former file is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=dpi)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
