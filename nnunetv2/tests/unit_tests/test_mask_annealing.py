"""Masked attention that is annealed away: the probabilities, the papers' schedules, plans, and the picture."""

import json
from pathlib import Path

import pytest
import torch
from example_plans import DATASET_JSON, PLANS
from stored_folds import FOLDER

from nnunetv2.experiment.derive import derive_plans
from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.experiment.mask_annealing import default_annealing
from nnunetv2.experiment.plans import as_stored, differences_between, differences_from, restore
from nnunetv2.experiment.schema import build
from nnunetv2.training.nnUNetTrainer.m2f_config import M2FnnUNetConfig
from nnunetv2.training.nnUNetTrainer.mask_classification_config import MaskClassificationConfig
from nnunetv2.training.nnUNetTrainer.vit_config import ViTnnUNetConfig
from nnunetv2.training.vit.mask_annealing import mask_probabilities
from nnunetv2.training.vit.schedule import create_schedule
from nnunetv2.training.vit.schedule_curves import draw_schedule, named_groups, sampled_steps, schedule_figure

# --- probabilities --------------------------------------------------------------------------------------------------


def test_probabilities_fall_between_start_and_end():
    start, end = [0.0, 0.2, 0.6], [0.4, 0.6, 1.0]
    assert mask_probabilities(0.0, start, end) == [1, 1, 1]
    assert mask_probabilities(0.2, start, end) == pytest.approx([0.5**0.9, 1, 1])
    assert mask_probabilities(0.5, start, end) == pytest.approx([0, 0.25**0.9, 1])
    assert mask_probabilities(1.0, start, end) == [0, 0, 0]


def test_a_block_may_lose_its_mask_at_once_or_have_none():
    assert mask_probabilities(0.49, [0.5], [0.5]) == [1] and mask_probabilities(0.5, [0.5], [0.5]) == [0]
    assert mask_probabilities(0.0, [0.0], [0.0]) == [0] and mask_probabilities(0.99, [1.0], [1.0]) == [1]


# --- the papers' schedules ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_blocks", "backbone", "num_steps", "start", "end"),
    [
        (4, "dinov3", 20_000, [0, 6520, 9780, 13040], [3000, 9780, 13040, 16300]),
        (4, "dinov2", 40_000, [6520, 13040, 19560, 26080], [13040, 19560, 26080, 32600]),
        (
            *(6, "dinov3", 20_000),
            [0, 5384, 7403, 9422, 11442, 13461],
            [3000, 8749, 10769, 12788, 14807, 16826],
        ),
    ],
)
def test_the_papers_numbers_of_blocks_have_their_steps(
    num_blocks: int, backbone: str, num_steps: int, start: list[int], end: list[int]
):
    found = default_annealing(num_blocks, backbone)
    assert [time * num_steps for time in found.start] == pytest.approx(start, abs=2)  # of plans, with four digits
    assert [time * num_steps for time in found.end] == pytest.approx(end, abs=2)


@pytest.mark.parametrize("backbone", ["dinov3", "dinov2", "timm:vit_tiny_patch16_224"])
@pytest.mark.parametrize("num_blocks", range(1, 13))
def test_every_number_of_blocks_has_a_schedule_between(num_blocks: int, backbone: str):
    start, end = default_annealing(num_blocks, backbone)
    assert len(start) == len(end) == num_blocks and start == sorted(start) and end == sorted(end)
    assert all(0 <= first < last <= 1 for first, last in zip(start, end, strict=True))
    reference = default_annealing(4 if num_blocks <= 5 else 6, backbone)
    if num_blocks > 1:
        assert (start[0], start[-1]) == (reference.start[0], reference.start[-1])
        assert (end[0], end[-1]) == (reference.end[0], reference.end[-1])


# --- plans ----------------------------------------------------------------------------------------------------------

BACKBONE = {"backbone_size": "tiny", "pretrained": False}


def read(network: str, num_blocks: int = 2, **train: object) -> MaskClassificationConfig:
    decoder = {"num_queries": 4, "num_blocks": num_blocks}
    model = {**BACKBONE, "model_path": f"nnunetv2.model.model_{network}", "decoder": decoder}
    return build(M2FnnUNetConfig, {"model": model, "train": train}, "test")


def derive(config: object) -> dict:
    return json.loads(json.dumps(derive_plans(PLANS, "2d", DATASET_JSON, config, "mine")))


@pytest.mark.parametrize("network", ["eomt", "pmt"])
def test_plans_hold_the_schedule_and_are_continued_without_it(network: str):
    plans, config = derive(read(network)), read(network)
    configuration = plans["configurations"]["2d"]
    stored = default_annealing(2, "dinov3")
    assert configuration["vit"]["train"]["mask_annealing"] == {"start": stored.start, "end": stored.end}
    restored = restore(M2FnnUNetConfig, configuration)
    assert type(restored) is MaskClassificationConfig and restored.mode == config.mode
    assert (restored.train.mask_annealing.start, restored.train.mask_annealing.end) == stored
    assert restored.model.decoder["num_blocks"] == 2
    assert list(differences_from(plans, "2d", DATASET_JSON, config)) == []
    other = read(network, mask_annealing={"start": [0, 0], "end": [1, 1]})
    assert any("train.mask_annealing.end" in line for line in differences_from(plans, "2d", DATASET_JSON, other))


def test_plans_of_mask2former_that_are_older_than_the_other_networks_are_its_own():
    stored = json.loads((FOLDER / "m2f" / "plans.json").read_text())["configurations"]["2d"]
    restored = restore(M2FnnUNetConfig, stored)
    assert type(restored) is M2FnnUNetConfig and (restored.model.hidden_dim, restored.model.num_queries) == (32, 8)
    assert list(differences_between(stored["vit"], as_stored(restored))) == []  # further folds are of one experiment


def test_a_schedule_of_another_number_of_blocks_is_told():
    with pytest.raises(ExperimentError, match=r"of which this network has 2, found 1$"):
        derive(read("pmt", mask_annealing={"start": [0], "end": [1]}))


QUERIES = """
from nnunetv2.model.model_pmt import PMTSegmentationModel as create_segmentation_model
from nnunetv2.model.model_pmt import resolve_options
"""
LOGITS = "from nnunetv2.model.model_linear import create_segmentation_model\n"


@pytest.mark.parametrize(
    ("schema", "module", "told"),
    [
        (ViTnnUNetConfig, QUERIES, "returns queries in training, nnUNetTrainer_vit trains dense logits"),
        (M2FnnUNetConfig, LOGITS, "returns dense logits in training, nnUNetTrainer_m2f trains queries"),
    ],
)
def test_a_network_of_ones_own_that_the_trainer_cannot_train_is_told(
    schema: type, module: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    name = f"own_{schema.__name__.lower()}"
    (tmp_path / f"{name}.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    config = build(schema, {"model": {**BACKBONE, "model_path": name}}, "test")
    with pytest.raises(ExperimentError) as caught:
        derive(config)
    assert told in str(caught.value) and "\n" not in str(caught.value)


# --- the picture ----------------------------------------------------------------------------------------------------


def test_learning_rates_and_probabilities_are_drawn_over_the_training(tmp_path: Path):
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
    own = [{}, {"is_backbone": True}, {"is_backbone": True}]
    groups = [
        {"params": [p], "initial_lr": rate, **more}
        for p, rate, more in zip(parameters, (1, 0.1, 0.5), own, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups)
    assert named_groups(optimizer) == {"decoder": 0, "backbone": 2}
    schedule = create_schedule(optimizer, "poly", "iteration", 4, 5, 1, 1, 0.9)
    path = tmp_path / "schedule.png"
    draw_schedule(path, 4, 5, named_groups(optimizer), schedule.rates, lambda epoch, _: [1.0, epoch / 4])
    assert path.stat().st_size > 10_000 and list(tmp_path.iterdir()) == [path]


def test_the_figure_has_a_panel_for_what_there_is():
    rates, probabilities = {"decoder": [1.0, 2.0], "backbone": [0.0, 1.0]}, {"block 1": [1.0, 0.5]}
    left, right = schedule_figure([0.0, 0.5], rates, probabilities).axes
    drawn = [{line.get_label(): list(line.get_ydata()) for line in panel.lines} for panel in (left, right)]
    assert drawn == [rates, probabilities] and list(left.lines[0].get_xdata()) == [0.0, 0.5]
    assert len(schedule_figure([0.0, 0.5], rates, {}).axes) == 1


@pytest.mark.parametrize(("num_epochs", "iterations"), [(1, 1), (2, 3), (1000, 250)])
def test_points_go_from_the_first_step_to_the_last(num_epochs: int, iterations: int):
    steps = sampled_steps(num_epochs, iterations)
    assert steps[0] == (0, 0) and steps[-1] == (num_epochs - 1, iterations - 1)
    assert steps == sorted(set(steps)) and len(steps) == min(500, num_epochs * iterations)
