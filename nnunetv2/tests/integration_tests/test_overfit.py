"""Every packaged decoder, with every backbone family, learns one real image by heart (`benchmarks/overfit.py`)."""

import subprocess
import sys
from pathlib import Path

import pytest

from nnunetv2.model.backbone import FAMILIES

BENCHMARK = Path(__file__).resolve().parents[3] / "benchmarks" / "overfit.py"
# Sides of the crop: larger ones take longer, on smaller ones the vessels are less thin.
SIDES = dict.fromkeys(FAMILIES, 128) | {"dinov3": 192}
STEPS = 300


def overfit(raw: Path, *options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARK), str(raw), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_decoder_learns_an_image_by_heart(family: str, real_data: Path, tmp_path: Path):
    picture = tmp_path / "overfit.png"
    options = ("--backbone", family, "--side", SIDES[family], "--steps", STEPS, "--picture", picture)
    result = overfit(real_data, *options)
    assert result.returncode == 0, result.stdout + result.stderr
    assert picture.is_file()


def test_what_is_not_learned_is_told(real_data: Path):
    result = overfit(real_data, "--side", 128, "--steps", 1, "--forms", "primus")
    assert result.returncode == 1 and result.stderr.endswith("not learned within 1 steps: primus\n")
