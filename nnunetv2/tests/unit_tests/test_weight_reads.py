"""How often a new training opens its file of weights: once to check it, once to load it."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from example_plans import CONFIGURATION, DATASET_JSON, PLANS
from published_decoders import published_pmt
from raw_weights import RawFile, meta_dinov3, retfound_mae

from dinov3.weights.layouts import read_weights
from nnunetv2.model.backbone import create_backbone
from nnunetv2.model.decoder_layouts import read_decoder_weights
from nnunetv2.run import run_training as nnunet
from nnunetv2.run.run_training_vit import run_training_entry
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer_vit import nnUNetTrainer_vit

# All of them are derived, with the same weights.
ALL_PLANS = {
    **PLANS,
    "configurations": {
        "2d": CONFIGURATION,
        "2d_small": {"inherits_from": "2d", "patch_size": [32, 32]},
        "2d_large": {"inherits_from": "2d", "patch_size": [96, 96]},
    },
}
OPENED: list[str] = []


def _note(event: str, arguments: tuple) -> None:
    if event == "open":
        OPENED.append(str(arguments[0]))


sys.addaudithook(_note)  # cannot be taken back; it does nothing but note names


def opens_of(path: Path, action: Callable[[], object]) -> int:
    """How often an action opens a file."""
    before = OPENED.count(str(path))
    action()
    return OPENED.count(str(path)) - before


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """nnU-Net's folders with all that a training looks at before it loads a case; the command may set variables."""
    variables, threads = dict(os.environ), torch.get_num_threads()
    for kind in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{kind}", str(tmp_path / kind))
    folder = tmp_path / "preprocessed" / "Dataset001_Test"
    (folder / "nnUNetPlans_2d").mkdir(parents=True)
    for case in range(5):  # one for each fold of nnU-Net's split
        (folder / "nnUNetPlans_2d" / f"case_{case}.b2nd").touch()
    (folder / "dataset.json").write_text(json.dumps(DATASET_JSON))
    (folder / "nnUNetPlans.json").write_text(json.dumps(ALL_PLANS))
    yield
    os.environ.clear()
    os.environ.update(variables)
    torch.set_num_threads(threads)


@pytest.fixture
def trainers(dataset: None, monkeypatch: pytest.MonkeyPatch) -> list[nnUNetTrainer_vit]:
    """The trainers that the command makes; they do not train."""
    trainers: list[nnUNetTrainer_vit] = []

    def initialize_trainer(name: str, configuration: str, fold: int, trainer: str, plans: str, *_: object) -> None:
        """What nnU-Net does before the first step."""
        trainers.append(
            nnunet.get_trainer_from_args(name, configuration, fold, trainer, plans, device=torch.device("cpu"))
        )
        trainers[0].initialize()

    monkeypatch.setattr(nnunet, "run_training", initialize_trainer)
    return trainers


@pytest.mark.parametrize(("backbone", "make"), [("dinov3", meta_dinov3), ("retfound", retfound_mae)])
def test_a_new_training_reads_its_weights_twice(
    backbone: str, make: Callable[[], RawFile], trainers: list[nnUNetTrainer_vit], tmp_path: Path
):
    path = make().save(tmp_path / "weights.pth")
    once = opens_of(path, lambda: read_weights(path))
    options = (f"model.backbone={backbone}", "model.backbone_size=tiny", f"model.checkpoint_path={path}")
    line = ["1", "2d", "0", "-device", "cpu", "--config", "linear", *options]
    assert opens_of(path, lambda: run_training_entry(line)) == 2 * once > 0
    expected, _, _ = create_backbone(backbone, "tiny", path)
    loaded = trainers[0].network.backbone.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in expected.state_dict().items())


@pytest.mark.integration
def test_a_new_training_reads_its_decoder_twice(trainers: list[nnUNetTrainer_vit], tmp_path: Path):
    state, path = published_pmt(), tmp_path / "decoder.pth"
    torch.save(state, path)
    once = opens_of(path, lambda: read_decoder_weights(path))
    network = ("model.backbone_size=tiny", "model.pretrained=false", "model.decoder.num_queries=7")
    options = (*network, "model.decoder.num_blocks=2", f"model.decoder_checkpoint_path={path}")
    line = ["1", "2d", "0", "-device", "cpu", "--config", "pmt", *options]
    assert opens_of(path, lambda: run_training_entry(line)) == 2 * once > 0
    loaded = trainers[0].network.decoder
    assert torch.equal(loaded.q.weight, state["network.decoder.q.weight"])


@pytest.mark.parametrize(("backbone", "make"), [("dinov3", meta_dinov3), ("retfound", retfound_mae)])
def test_a_backbone_reads_its_weights_once(backbone: str, make: Callable[[], RawFile], tmp_path: Path):
    path = make().save(tmp_path / "weights.pth")
    once = opens_of(path, lambda: read_weights(path))
    assert opens_of(path, lambda: create_backbone(backbone, "tiny", path)) == once > 0
