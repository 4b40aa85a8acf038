"""Every packaged decoder, with every backbone family, learns one real image by heart (`benchmarks/overfit.py`)."""

import subprocess
import sys
from pathlib import Path

import pytest

from nnunetv2.model.backbone import FAMILIES

BENCHMARK = Path(__file__).resolve().parents[3] / "benchmarks" / "overfit.py"
SIDE, STEPS = 192, 600


def overfit(raw: Path, *options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARK), str(raw), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_decoder_learns_an_image_by_heart(family: str, real_data: Path, tmp_path: Path):
    picture = tmp_path / "overfit.png"
    options = ("--backbone", family, "--side", SIDE, "--steps", STEPS, "--picture", picture)
    result = overfit(real_data, *options)
    assert result.returncode == 0, result.stdout + result.stderr
    assert picture.is_file()


def test_what_is_not_learned_is_told(real_data: Path):
    result = overfit(real_data, "--side", SIDE, "--steps", 1, "--forms", "primus")
    assert result.returncode == 1 and result.stderr.endswith("not learned within 1 steps: primus\n")


def test_a_crop_that_a_coarse_grid_can_draw_is_told(real_data: Path):
    result = overfit(real_data, "--side", 128, "--backbone", "dinov2", "--forms", "linear")
    assert result.returncode == 2 and "this crop does not tell fine decoders from coarse ones" in result.stderr


def test_a_folder_without_a_data_set_is_told(tmp_path: Path):
    result = overfit(tmp_path)
    assert result.returncode == 2 and "no data set of nnU-Net" in result.stderr
