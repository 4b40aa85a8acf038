"""The trainer through its Python interface: resuming, checkpoints, weights, plain plans."""

import copy
import functools
import gc
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from dinov3.weights.reading import read_checkpoint
from nnunetv2.experiment.derive import derive_plans
from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.experiment.schema import load_config
from nnunetv2.model.backbone import create_backbone
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer_vit import nnUNetTrainer_vit
from nnunetv2.training.nnUNetTrainer.vit_config import ViTnnUNetConfig
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

CPU = torch.device("cpu")


@pytest.fixture
def make_trainer(workplace, base_plans: dict, dataset_json: dict, tmp_path: Path, monkeypatch):
    """Make trainers of the tiny experiment that write to a folder of the test."""
    for name, folder in workplace.folders.items():
        monkeypatch.setenv(name, str(folder))

    @functools.cache  # a derivation runs the network
    def derive(file: str, *overrides: str) -> dict:
        config = load_config(ViTnnUNetConfig, str(workplace.root / file), overrides)
        return derive_plans(base_plans, "2d", dataset_json, config, "tiny")

    def make(*overrides: str, results: str = "results", file: str = "tiny.yaml") -> nnUNetTrainer_vit:
        monkeypatch.setenv("nnUNet_results", str(tmp_path / results))
        plans = copy.deepcopy(derive(file, *overrides))
        return nnUNetTrainer_vit(plans, "2d", 0, dataset_json, CPU)

    return make


class Interrupted(Exception):
    pass


def interrupt_after(trainer: nnUNetTrainer_vit, epochs: int) -> None:
    on_epoch_end = trainer.on_epoch_end

    def stop() -> None:
        on_epoch_end()
        if trainer.current_epoch == epochs:
            raise Interrupted

    trainer.on_epoch_end = stop
    with pytest.raises(Interrupted):
        trainer.run_training()


@pytest.mark.parametrize("mode", [["lora.enabled=true"], ["train.optimizer=adamw", "train.layer_decay=0.7"]])
def test_a_resumed_training_equals_an_uninterrupted_one(make_trainer, mode: list[str]):
    options = [*mode, "train.num_epochs=4", "train.schedule=cosine", "train.warmup_epochs=1"]
    straight = make_trainer(*options, results="straight")
    straight.run_training()
    first = make_trainer(*options, results="resumed")
    interrupt_after(first, epochs=2)
    second = make_trainer(*options, results="resumed")
    second.load_checkpoint(str(Path(second.output_folder) / "checkpoint_latest.pth"))
    assert second.current_epoch == 2
    second.run_training()
    for key in ("lrs", "train_losses", "val_losses"):
        assert second.logger.get_value(key, None) == straight.logger.get_value(key, None), key
    for name, value in straight.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[name]), name
    expected = [0.5, 1.0, 0.75, 0.25]
    assert straight.logger.get_value("lrs", None) == pytest.approx([0.01 * factor for factor in expected])


# In `make test` one with the averages of batch norm, and one that draws random numbers
@pytest.mark.parametrize(
    "decoder",
    [
        pytest.param(["model_segformer", "decoder_hidden_size=16"], marks=pytest.mark.nightly),
        ["model_dpt", "fusion_hidden_size=16", "use_batch_norm_in_fusion_residual=auto"],
        pytest.param(["model_unetr", "decoder_channels=[16,8,8,8,8]", "image_branch=true"], marks=pytest.mark.nightly),
        pytest.param(["primus", "embed_dim=32"], marks=pytest.mark.nightly),
        pytest.param(["primus", "embed_dim=32", "multiscale=true"], marks=pytest.mark.nightly),
        ["model_linear", "dropout=0.5"],
        ["model_dinounet", "features_per_stage=[8,8,16,16]", "rank=16", "auxiliary_outputs=true"],
    ],
    ids=lambda decoder: decoder[0] + "_multiscale" * ("multiscale=true" in decoder),
)
def test_every_decoder_resumes(make_trainer, decoder: list[str]):
    module, *options = decoder
    overrides = [f"model.model_path=nnunetv2.model.{module}", *(f"model.decoder.{option}" for option in options)]
    straight = make_trainer(*overrides, results="straight", file="any_decoder.yaml")
    straight.run_training()
    interrupt_after(make_trainer(*overrides, results="resumed", file="any_decoder.yaml"), epochs=1)
    second = make_trainer(*overrides, results="resumed", file="any_decoder.yaml")
    second.load_checkpoint(str(Path(second.output_folder) / "checkpoint_latest.pth"))
    second.run_training()
    assert second.logger.get_value("train_losses", None) == straight.logger.get_value("train_losses", None)
    for name, value in straight.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[name]), name


def test_deep_supervision_is_nnunets(make_trainer):
    """The loss is the weighted sum over the outputs, each with the target that nnU-Net's loader makes of its size."""
    overrides = ["model.model_path=nnunetv2.model.model_dinounet", "model.decoder.features_per_stage=[8,8,16,16]"]
    options = [*overrides, "model.decoder.rank=8", "train.patch_size=[65,67]"]
    trainer = make_trainer(*options, "model.decoder.auxiliary_outputs=true", file="any_decoder.yaml")
    trainer.on_train_start()
    batch = next(trainer.dataloader_train)
    trainer.network.eval()  # the same for every call: no batch norm of the batch, nothing skipped
    outputs = trainer.network(batch["data"])
    assert [x.shape[-2:] for x in batch["target"]] == [x.shape[-2:] for x in outputs] and len(outputs) == 3
    each = [float(trainer.loss.loss(x.detach(), target)) for x, target in zip(outputs, batch["target"], strict=True)]
    expected = (each[0] + each[1] / 2) / 1.5  # nnU-Net leaves the coarsest output out
    result = trainer.validation_step({**batch, "target": [target.clone() for target in batch["target"]]})
    assert result["loss"] == pytest.approx(expected, rel=1e-5) and len(result["tp_hard"]) == 2
    trainer.set_deep_supervision_enabled(False)
    assert torch.equal(trainer.network(batch["data"]), outputs[0])
    without = make_trainer(*options, file="any_decoder.yaml", results="without")
    assert not without.enable_deep_supervision
    with pytest.raises(ExperimentError, match="unknown key model.decoder.auxiliary_outputs"):
        make_trainer("model.decoder.auxiliary_outputs=true", file="any_decoder.yaml")


def test_what_is_automatic_is_decided_in_the_plans(make_trainer):
    option = "use_batch_norm_in_fusion_residual"
    dpt = ["model.model_path=nnunetv2.model.model_dpt", "model.decoder.fusion_hidden_size=16"]
    for batch_size in (2, 4):
        overrides = [*dpt, f"model.decoder.{option}=auto", f"train.batch_size={batch_size}"]
        configuration = make_trainer(*overrides, file="any_decoder.yaml").configuration_manager.configuration
        assert configuration["architecture"]["arch_kwargs"][option] is (batch_size == 4)
        assert "decoder" not in configuration["vit"]["model"]


def test_without_a_seed_trainings_differ(make_trainer):
    losses = []
    for name in ("a", "b"):
        trainer = make_trainer("train.seed=null", "train.num_epochs=1", results=name)
        trainer.run_training()
        losses.append(trainer.logger.get_value("train_losses", -1))
    assert losses[0] != losses[1]


def figures_in_memory() -> int:
    return sum(isinstance(thing, Figure) for thing in gc.get_objects())


def test_the_plot_of_an_epoch_does_not_stay_in_memory(make_trainer):
    trainer = make_trainer("train.num_epochs=1")
    gc.collect()
    gc.disable()  # whether the collector comes by on its own is chance
    try:
        before = figures_in_memory()
        trainer.run_training()
        after = figures_in_memory()
    finally:
        gc.enable()
    assert (Path(trainer.output_folder) / "progress.png").is_file() and after == before


def test_a_loss_that_is_not_finite_stops_with_the_checkpoint_intact(make_trainer):
    trainer = make_trainer("train.num_epochs=3")
    interrupt_after(trainer, epochs=1)
    path = Path(trainer.output_folder) / "checkpoint_latest.pth"
    before = path.read_bytes()
    weights = copy.deepcopy(trainer.network.state_dict())
    trainer.loss = lambda output, target: output.sum() * torch.nan
    with pytest.raises(ExperimentError, match="training loss is nan in epoch 1"):
        trainer.run_training()
    assert path.read_bytes() == before
    assert all(torch.equal(value, weights[name]) for name, value in trainer.network.state_dict().items())
    assert "training loss is nan" in Path(trainer.log_file).read_text()


def test_a_gradient_that_is_not_finite_stops_before_the_step(make_trainer):
    trainer = make_trainer("train.num_epochs=1")
    trainer.initialize()
    weights = copy.deepcopy(trainer.network.state_dict())
    trainer.loss = lambda output, target: torch.sqrt((output.sum() * 0).abs())  # 0, with a gradient that is not
    with pytest.raises(ExperimentError, match="gradient norm is nan"):
        trainer.run_training()
    assert all(torch.equal(value, weights[name]) for name, value in trainer.network.state_dict().items())
    assert not list(Path(trainer.output_folder).glob("*.pth"))


def test_a_validation_loss_that_is_not_finite_writes_no_checkpoint(make_trainer):
    trainer = make_trainer("train.num_epochs=1")
    trainer.initialize()
    loss = trainer.loss
    trainer.loss = lambda output, target: loss(output, target) * (1 if output.requires_grad else torch.inf)
    with pytest.raises(ExperimentError, match="validation loss is -?inf in epoch 0"):
        trainer.run_training()
    assert not list(Path(trainer.output_folder).glob("*.pth"))


def test_scaled_gradients_are_unscaled_before_they_are_clipped(make_trainer):
    trainer = make_trainer("train.gradient_clip=0.001", "train.momentum=0.5", "train.initial_lr=0.1")
    trainer.initialize()
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = copy.deepcopy(list(trainer.network.parameters()))
    batch = {"data": torch.rand(2, 3, 64, 64), "target": torch.randint(0, 3, (2, 1, 64, 64)).float()}
    trainer.train_step(batch)
    norm = torch.stack([p.grad.norm() for p in trainer.network.parameters() if p.grad is not None]).norm()
    assert float(norm) == pytest.approx(0.001, rel=1e-3)
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True))


def test_the_results_of_another_experiment_are_not_touched(make_trainer, tmp_path: Path):
    trainer = make_trainer("train.num_epochs=2")
    interrupt_after(trainer, epochs=1)
    kept = [Path(trainer.output_folder_base) / "plans.json", Path(trainer.output_folder) / "checkpoint_latest.pth"]
    before = [path.read_bytes() for path in kept]
    other = make_trainer("train.num_epochs=2", "model.decoder.hidden_size=64")
    with pytest.raises(ExperimentError, match=r"(?s)hidden_size: 32 → 64.*--name"):
        other.run_training()
    assert [path.read_bytes() for path in kept] == before


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(make_trainer, monkeypatch):
    trainer = make_trainer()
    trainer.initialize()
    path = Path(trainer.output_folder) / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(path))
    before = path.read_bytes()

    def full(_content: object, file: str) -> None:
        Path(file).write_bytes(b"half a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ExperimentError, match="cannot write .*the existing file is unchanged: .*No space left"):
        trainer.save_checkpoint(str(path))
    assert path.read_bytes() == before and not list(path.parent.glob("*.tmp"))


def save_at(trainer: nnUNetTrainer_vit, name: str, epoch: int) -> None:
    trainer.current_epoch = epoch
    trainer.save_checkpoint(str(Path(trainer.output_folder) / name))


def epochs_stored(trainer: nnUNetTrainer_vit) -> dict[str, int]:
    paths = Path(trainer.output_folder).glob("checkpoint_*")
    return {path.name: read_checkpoint(path)["current_epoch"] for path in paths}


def test_the_checkpoint_to_resume_from_is_never_older_than_the_best(make_trainer):
    trainer = make_trainer()
    trainer.initialize()
    save_at(trainer, "checkpoint_latest.pth", epoch=1)
    save_at(trainer, "checkpoint_best.pth", epoch=4)
    assert epochs_stored(trainer) == {"checkpoint_latest.pth": 5, "checkpoint_best.pth": 5}
    save_at(trainer, "checkpoint_latest.pth", epoch=6)
    assert epochs_stored(trainer) == {"checkpoint_latest.pth": 7, "checkpoint_best.pth": 5}


def test_without_hard_links_checkpoints_are_as_nnunet_writes_them(make_trainer, monkeypatch):
    def refuse(*_paths: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("os.link", refuse)
    trainer = make_trainer()
    trainer.initialize()
    save_at(trainer, "checkpoint_latest.pth", epoch=1)
    save_at(trainer, "checkpoint_best.pth", epoch=4)
    assert epochs_stored(trainer) == {"checkpoint_latest.pth": 2, "checkpoint_best.pth": 5}


def test_what_a_kill_left_of_a_checkpoint_is_removed_at_the_next_start(make_trainer):
    trainer = make_trainer()
    trainer.initialize()
    save_at(trainer, "checkpoint_latest.pth", epoch=0)
    left = Path(trainer.output_folder) / "checkpoint_best.pth.1234.tmp"
    left.write_bytes(b"half a checkpoint")
    trainer.on_train_start()
    assert epochs_stored(trainer) == {"checkpoint_latest.pth": 1}


def test_pretrained_weights_are_loaded_once_and_not_needed_again(make_trainer, tmp_path: Path):
    source, _, _ = create_backbone("dinov3", "tiny")
    weights = tmp_path / "weights.pth"
    torch.save(source.state_dict(), weights)
    option = f"model.checkpoint_path={weights}"
    trainer = make_trainer(option)
    resumed = make_trainer(option)
    trainer.initialize()
    for name, value in source.state_dict().items():
        assert torch.equal(trainer.network.backbone.state_dict()[name], value)
    with torch.no_grad():
        trainer.network.backbone.cls_token.fill_(7.0)
    checkpoint = tmp_path / "checkpoint.pth"
    trainer.save_checkpoint(str(checkpoint))
    weights.unlink()
    resumed.load_checkpoint(str(checkpoint))
    assert (resumed.network.backbone.cls_token == 7).all()


def test_on_plain_plans_the_experiment_is_derived_in_memory(make_trainer, base_plans, dataset_json, workplace):
    make_trainer()  # sets the folders
    files = set(workplace.preprocessed.rglob("*.json"))
    path = str(workplace.root / "tiny.yaml")
    trainer = nnUNetTrainer_vit(base_plans, "2d", 0, dataset_json, CPU, config_path=path)
    assert trainer.plans_manager.plans_name == "nnUNetPlans_tiny"
    assert trainer.output_folder_base.endswith("nnUNetTrainer_vit__nnUNetPlans_tiny__2d")
    assert (trainer.num_epochs, trainer.initial_lr) == (2, 0.01)
    assert trainer.configuration_manager.patch_size == [64, 64]
    assert trainer.my_init_kwargs["config_path"] == path
    assert set(workplace.preprocessed.rglob("*.json")) == files and base_plans["plans_name"] == "nnUNetPlans"


def test_the_default_experiment_of_a_trainer(make_trainer, base_plans, dataset_json):
    make_trainer()
    for name in nnUNetTrainer_vit.config_class.TRAINERS:
        trainer_class = recursive_find_trainer_class_by_name(name)
        assert trainer_class.config_class is ViTnnUNetConfig
        trainer = trainer_class(copy.deepcopy(base_plans), "2d", 0, dataset_json, CPU)
        assert trainer.plans_manager.plans_name == "nnUNetPlans_upernet" and type(trainer).__name__ == name
        assert (trainer.initial_lr, trainer.num_epochs, trainer.num_iterations_per_epoch) == (0.001, 1000, 250)
        assert not trainer.enable_deep_supervision and trainer.grad_scaler is None  # no scaler on the CPU


def test_derived_plans_and_a_config_path_contradict_each_other(make_trainer, dataset_json):
    plans = make_trainer().plans_manager.plans
    with pytest.raises(ExperimentError, match="config_path must be left out"):
        nnUNetTrainer_vit(plans, "2d", 0, dataset_json, CPU, config_path="upernet")


def test_what_the_config_leaves_open_is_upstreams(make_trainer, base_plans, dataset_json, tmp_path: Path):
    make_trainer()
    path = tmp_path / "open.yaml"
    path.write_text("model: {backbone_size: tiny, pretrained: false}\n")
    ours = nnUNetTrainer_vit(copy.deepcopy(base_plans), "2d", 0, dataset_json, CPU, config_path=str(path))
    plain = {**copy.deepcopy(base_plans), "continue_training": False}
    theirs = nnUNetTrainer(plain, "2d", 0, dataset_json, CPU)
    names = ("initial_lr", "weight_decay", "num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch")
    assert [getattr(ours, n) for n in (*names, "save_every")] == [getattr(theirs, n) for n in (*names, "save_every")]
    assert ours.configuration_manager.batch_size == theirs.configuration_manager.batch_size
    assert ours.configuration_manager.patch_size == theirs.configuration_manager.patch_size
    ours.initialize()
    ours.on_train_epoch_start()
    assert ours.optimizer.param_groups[0]["lr"] == theirs.initial_lr


def test_gradients_are_clipped_as_configured(make_trainer):
    trainer = make_trainer("train.gradient_clip=0.001")
    trainer.initialize()
    trainer.network.train()
    batch = {"data": torch.rand(2, 3, 64, 64), "target": torch.randint(0, 3, (2, 1, 64, 64)).float()}
    loss = trainer.train_step(batch)["loss"]
    norm = torch.stack([p.grad.norm() for p in trainer.network.parameters() if p.grad is not None]).norm()
    assert np.isfinite(loss) and float(norm) == pytest.approx(0.001, rel=1e-3)


def test_the_checkpoint_names_the_config_path_for_people(make_trainer, tmp_path: Path):
    trainer = make_trainer()
    trainer.initialize()
    path = tmp_path / "checkpoint.pth"
    trainer.save_checkpoint(str(path))
    checkpoint = read_checkpoint(path)
    assert "config_path" in checkpoint["init_args"]
    assert json.loads(json.dumps(checkpoint["init_args"]["plans"]))["plans_name"] == "nnUNetPlans_tiny"
