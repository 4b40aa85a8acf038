"""Every packaged decoder, with every backbone family, overfits one real image (`benchmarks/overfit.py`), and every
network of mask classification four (`benchmarks/overfit_m2f.py`)."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import overfit
import overfit_m2f
import pytest
from packaged_decoders import FORMS

from nnunetv2.model.backbone import FAMILIES

SIDE, STEPS = 192, 600
ONE_FORM = "unetr deconv"
NIGHTLY = ("segformer full", "unetr bilinear")  # `make test` has other forms of these decoders
Benchmark = Callable[..., Any]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Benchmark:
    """Call the benchmark in this process; return what it exits with."""

    def run(*arguments: object) -> Any:
        return call(monkeypatch, overfit, *arguments)

    return run


def call(monkeypatch: pytest.MonkeyPatch, module: ModuleType, *arguments: object) -> Any:
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
    try:
        module.main()
    except SystemExit as end:
        return end.code
    return 0


def options_for(family: str, *forms: str) -> tuple[object, ...]:
    return ("--backbone", family, "--side", SIDE, "--steps", STEPS, "--forms", *forms)


@pytest.mark.parametrize("form", [pytest.param(f, marks=[pytest.mark.nightly] * (f in NIGHTLY)) for f in FORMS])
def test_every_decoder_overfits_an_image(benchmark: Benchmark, form: str, real_data: Path, tmp_path: Path):
    picture = tmp_path / "overfit.png"
    assert benchmark(real_data, *options_for("dinov3", form), "--picture", picture) == 0
    assert picture.is_file()


def test_a_decoder_overfits_an_image_on_patches_of_another_size(benchmark: Benchmark, real_data: Path):
    assert benchmark(real_data, *options_for("dinov2", ONE_FORM)) == 0


@pytest.mark.nightly
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "dinov3"])
def test_every_decoder_overfits_an_image_with_every_family(benchmark: Benchmark, family: str, real_data: Path):
    assert benchmark(real_data, *options_for(family, *FORMS)) == 0


@pytest.mark.parametrize("network", ["eomt", "pmt", pytest.param("m2f", marks=pytest.mark.nightly)])
def test_every_network_of_mask_classification_overfits_four_images(
    network: str, monkeypatch: pytest.MonkeyPatch, real_data: Path
):
    assert call(monkeypatch, overfit_m2f, real_data, "--network", network, "--side", 160, "--steps", 160) == 0


def test_what_is_not_learned_is_told(benchmark: Benchmark, real_data: Path):
    told = benchmark(real_data, "--side", SIDE, "--steps", 1, "--forms", "primus")
    assert told == "not learned within 1 steps: primus"


def test_a_crop_that_a_coarse_grid_can_draw_is_told(benchmark: Benchmark, real_data: Path, capsys):
    assert benchmark(real_data, "--side", 128, "--backbone", "dinov2", "--forms", "linear") == 2
    assert "this crop does not tell fine decoders from coarse ones" in capsys.readouterr().err


def test_a_folder_without_a_data_set_is_told(benchmark: Benchmark, tmp_path: Path, capsys):
    assert benchmark(tmp_path) == 2
    assert "no data set of nnU-Net" in capsys.readouterr().err
