"""The U-Net as an experiment: the losses of the stock trainer, chosen training cases, and what a training costs."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nnunetv2.experiment.derive import derive_plans
from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.experiment.schema import load_config
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer_unet import nnUNetTrainer_unet
from nnunetv2.training.nnUNetTrainer.unet_config import UNetConfig
from nnunetv2.training.vit.cost import FILE, read_cost
from nnunetv2.training.vit.seeding import seed_epoch

CPU = torch.device("cpu")
SEED, EPOCHS, STEPS, VALIDATION_STEPS = 3, 2, 2, 1
SHORT = (
    f"train.seed={SEED}",
    f"train.num_epochs={EPOCHS}",
    f"train.num_iterations_per_epoch={STEPS}",
    f"train.num_val_iterations_per_epoch={VALIDATION_STEPS}",
)
SMALL = ("train.patch_size=[64,64]", "train.batch_size=2", "train.save_every=1")


@pytest.fixture
def small_plans(base_plans: dict) -> dict:
    """The data set's plans with a U-Net of fewer channels and smaller batches."""
    plans = copy.deepcopy(base_plans)
    configuration = plans["configurations"]["2d"]
    configuration["batch_size"] = 2
    keywords = configuration["architecture"]["arch_kwargs"]
    keywords["features_per_stage"] = [8] * keywords["n_stages"]
    return plans


@pytest.fixture
def make_trainer(workplace, small_plans: dict, dataset_json: dict, tmp_path: Path, monkeypatch) -> Callable:
    """Make U-Net trainers that write to a folder of the test."""
    for name, folder in workplace.folders.items():
        monkeypatch.setenv(name, str(folder))

    def make(*overrides: str, fold: int | str = 0, results: str = "results") -> nnUNetTrainer_unet:
        monkeypatch.setenv("nnUNet_results", str(tmp_path / results))
        config = load_config(UNetConfig, "unet", [*SHORT, *overrides])
        plans = derive_plans(copy.deepcopy(small_plans), "2d", dataset_json, config, "unet")
        return without_plot(nnUNetTrainer_unet(plans, "2d", fold, dataset_json, CPU))

    return make


def without_plot(trainer: nnUNetTrainer) -> nnUNetTrainer:
    """Leave out nnU-Net's picture of an epoch, which takes longer than the epoch."""
    trainer.logger.plot_progress_png = lambda _folder: None
    return trainer


def recorded_losses(trainer: nnUNetTrainer) -> list[float]:
    """Train, and return the losses of all steps of training and validation."""
    losses = []

    def recorded(step: Callable[[dict], dict]) -> Callable[[dict], dict]:
        def make(batch: dict) -> dict:
            result = step(batch)
            losses.append(float(result["loss"]))
            return result

        return make

    trainer.train_step, trainer.validation_step = recorded(trainer.train_step), recorded(trainer.validation_step)
    trainer.run_training()
    return losses


class SeededStockTrainer(nnUNetTrainer):
    """nnU-Net's trainer with a seed: nothing but seeding is added."""

    def initialize(self) -> None:
        seed_epoch(SEED, 0, 0)
        super().initialize()

    def on_train_epoch_start(self) -> None:
        seed_epoch(SEED, self.current_epoch, 0)
        super().on_train_epoch_start()


def test_every_step_has_the_loss_of_the_stock_trainer(make_trainer, small_plans: dict, dataset_json: dict):
    ours = make_trainer()
    assert ours.enable_deep_supervision
    losses = recorded_losses(ours)
    plans = {**copy.deepcopy(small_plans), "continue_training": False}
    stock = without_plot(SeededStockTrainer(plans, "2d", 0, dataset_json, CPU))
    stock.num_epochs, stock.num_iterations_per_epoch, stock.num_val_iterations_per_epoch = 2, STEPS, VALIDATION_STEPS
    assert recorded_losses(stock) == losses
    assert len(set(losses)) == EPOCHS * (STEPS + VALIDATION_STEPS)  # every step has another one
    assert len(stock.loss.weight_factors) > 2 and stock.loss.weight_factors == ours.loss.weight_factors
    for name, value in stock.network.state_dict().items():
        assert torch.equal(value, ours.network.state_dict()[name]), name


class Interrupted(Exception):
    pass


def test_a_resumed_training_uses_the_same_cases_and_adds_to_the_costs(make_trainer):
    options = (*SMALL, "train.num_training_cases=2")
    straight = make_trainer(*options, results="straight")
    losses = recorded_losses(straight)
    first = make_trainer(*options)
    folder = Path(first.output_folder)

    def interrupt() -> None:
        type(first).on_epoch_end(first)
        raise Interrupted

    first.on_epoch_end = interrupt
    with pytest.raises(Interrupted):
        first.run_training()
    before = json.loads((folder / FILE).read_text())
    assert before["epochs"] == 1 and before["training_seconds"] > 0 and before["validation_seconds"] is None
    assert before["checkpoint_bytes"] == (folder / "checkpoint_latest.pth").stat().st_size
    second = make_trainer(*options)
    second.load_checkpoint(str(folder / "checkpoint_latest.pth"))
    assert recorded_losses(second) == losses[STEPS + VALIDATION_STEPS :]
    cases = [trainer.dataloader_train.data_loader.indices for trainer in (straight, first, second)]
    assert cases[0] == cases[1] == cases[2] and len(cases[0]) == 2
    after = read_cost(folder)
    assert after["epochs"] == EPOCHS == len(after["step_seconds_per_epoch"])
    assert after["step_seconds_per_epoch"][0] == before["step_seconds_median"]
    for key in ("setup_seconds", "training_seconds", "total_seconds"):
        assert after[key] > before[key], key
    for key in ("configuration_hash", "parameters", "flops", "versions"):
        assert after[key] == before[key] and after[key], key


def test_a_command_adds_the_validation_to_the_costs(trained):
    (folder,) = trained.results.glob("*/nnUNetTrainer_vit__nnUNetPlans_one__2d/fold_0")
    cost = read_cost(folder)
    assert (cost["epochs"], cost["validation_cases"], cost["processes"]) == (2, 1, 1)
    times = [cost[f"{part}_seconds"] for part in ("setup", "training", "validation")]
    assert min(times) > 0 and cost["total_seconds"] == pytest.approx(sum(times))
    assert cost["checkpoint_bytes"] == (folder / "checkpoint_final.pth").stat().st_size
    assert cost["peak_resident_bytes"] > cost["checkpoint_bytes"] and cost["peak_allocated_bytes"] is None
    assert cost["parameters"] == cost["trainable_parameters"] > 0  # full fine-tuning
    assert cost["flops"] > cost["parameters"] and cost["flops_unknown_because"] is None
    assert {"torch", "timm", "nnunetv2", "nnunet-vit"} <= cost["versions"].keys() and cost["device"]


def test_the_training_cases_are_a_subset_and_the_validation_cases_those_of_nnunet(make_trainer):
    for fold in (0, "all"):
        cases, validation = make_trainer(*SMALL, fold=fold).do_split()
        splits = {n: make_trainer(*SMALL, f"train.num_training_cases={n}", fold=fold).do_split() for n in (1, 2, 3)}
        assert [len(chosen) for chosen, _ in splits.values()] == [1, 2, 3]
        assert set(splits[1][0]) < set(splits[2][0]) < set(splits[3][0]) < set(cases)
        assert all(others == validation for _, others in splits.values())


def test_the_log_names_the_cases(make_trainer):
    trainer = make_trainer(*SMALL, "train.num_training_cases=2")
    chosen, _ = trainer.do_split()
    assert f"Training on 2 of 4 training cases: {', '.join(chosen)}" in Path(trainer.log_file).read_text()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.num_training_cases=9", "train.num_training_cases is 9, but the fold has only 4 training cases"),
        ("train.training_groups=nowhere.csv", "train.training_groups: cannot read the groups nowhere.csv"),
        ("train.patch_size=[72,64]", "train.patch_size must be divisible by the U-Net's strides: the next larger one"),
        ("train.patch_size=[8,8]", "train.patch_size is too small for a U-Net: at least 16 × 16, found [8, 8]"),
        ("model.backbone=dinov2", "unknown key model (value {'backbone': 'dinov2'}); allowed: trainer, train"),
        ("lora.enabled=true", "unknown key lora (value {'enabled': True}); allowed: trainer, train"),
        ("train.layer_decay=0.5", "unknown key train.layer_decay (value 0.5) (did you mean 'weight_decay'?)"),
    ],
)
def test_what_is_impossible_is_refused_before_anything_is_written(workplace, refused, override: str, told: str):
    command = ("900", "2d", 0, "--config", "unet", "-device", "cpu")
    assert told in refused(workplace, *command, "train.num_epochs=1", override)


def test_groups_are_read_into_the_plans(make_trainer, dataset_folder: Path, tmp_path: Path):
    cases = sorted(path.name.split(".")[0] for path in (dataset_folder / "gt_segmentations").iterdir())
    file = tmp_path / "groups.csv"
    file.write_text("case,group\n" + "".join(f"{case},{i // 2}\n" for i, case in enumerate(cases)))
    trainer = make_trainer(*SMALL, "train.num_training_cases=3", f"train.training_groups={file}", fold="all")
    file.unlink()
    chosen, validation = trainer.do_split()
    assert 0 < len(chosen) <= 3 and sorted(validation) == cases
    groups = trainer.configuration_manager.configuration["vit"]["train"]["training_groups"]
    assert groups == trainer.config.train.training_groups == {case: str(i // 2) for i, case in enumerate(cases)}
    assert {case for case in cases if groups[case] in {groups[c] for c in chosen}} == set(chosen)
    with pytest.raises(ExperimentError, match=r"train\.training_groups has no group for 5 training cases"):
        make_trainer(*SMALL, "train.num_training_cases=1", "train.training_groups={}", fold="all").do_split()
