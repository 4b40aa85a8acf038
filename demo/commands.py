"""Run nnU-Net's and our commands as a user would, and draw what they predict."""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from time import time

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {1: (230, 60, 60), 2: (70, 110, 255), 3: (90, 200, 90)}
CAPTION_HEIGHT, GAP = 24, 6  # pixels


def environment(output: Path, raw: Path) -> dict[str, str]:
    """The process's environment with nnU-Net's folders set, and without access to the model hub."""
    folders = {"raw": raw, "preprocessed": output / "preprocessed", "results": output / "results"}
    own = {f"nnUNet_{kind}": str(folder) for kind, folder in folders.items()}
    cores = str(min(4, os.cpu_count() or 1))
    # threads that spin while they wait would take the cores from nnU-Net's other processes
    return {"OMP_WAIT_POLICY": "passive", **os.environ, **own, "nnUNet_def_n_proc": cores, "HF_HUB_OFFLINE": "1"}


def run(variables: dict[str, str], command: str, *arguments: object) -> None:
    """Run an installed command, showing it first; stop with its exit code where it fails."""
    line = [command, *map(str, arguments)]
    print(f"\n$ {' '.join(line)}", flush=True)
    start = time()
    line[0] = str(Path(sysconfig.get_path("scripts")) / command)
    code = subprocess.run(line, env=variables, check=False).returncode
    if code:
        sys.exit(f"{command} failed with exit code {code}")
    print(f"({command}: {time() - start:.0f} s)", flush=True)


def paint(labels: np.ndarray) -> Image.Image:
    """Draw labels (H, W) as colours on black."""
    picture = np.zeros((*labels.shape, 3), dtype=np.uint8)
    for label, colour in COLOURS.items():
        picture[labels == label] = colour
    return Image.fromarray(picture)


def write_sheet(rows: Sequence[Sequence[Image.Image]], captions: Sequence[str], side: int, path: Path) -> None:
    """Write a picture of rows of tiles, each scaled to a longer side of `side` pixels, under a line of captions."""
    fitted = [[fit(tile, side) for tile in tiles] for tiles in rows]
    heights = [max(tile.height for tile in tiles) for tiles in fitted]
    size = (len(captions) * (side + GAP) - GAP, CAPTION_HEIGHT + sum(heights) + GAP * (len(rows) - 1))
    sheet = Image.new("RGB", size, "white")
    for column, caption in enumerate(captions):
        ImageDraw.Draw(sheet).text((column * (side + GAP), 6), caption, fill="black")
    top = CAPTION_HEIGHT
    for tiles, height in zip(fitted, heights, strict=True):
        for column, tile in enumerate(tiles):
            sheet.paste(tile, (column * (side + GAP), top))
        top += height + GAP
    sheet.save(path)


def fit(tile: Image.Image, side: int) -> Image.Image:
    """Scale a picture to a longer side of `side` pixels, without mixing the colours of labels."""
    scale = side / max(tile.size)
    size = (round(tile.width * scale), round(tile.height * scale))
    return tile.convert("RGB").resize(size, Image.Resampling.NEAREST)
