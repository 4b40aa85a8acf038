"""What callers of the first versions use: names, places, commands, formats, and what a training notes of itself."""

import copy
import json
import re
import runpy
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from dinov3.weights.reading import read_checkpoint
from nnunetv2.experiment import versions
from nnunetv2.experiment.derive import derive_plans
from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.experiment.plans import as_stored, check_results, write_new_plans
from nnunetv2.experiment.schema import build, config_source, find_config, load_config, packaged_configs
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.arguments import TrainingArguments, parse_arguments
from nnunetv2.run.train_experiment import derive, read_experiment, stored_plans
from nnunetv2.run.training_commands import TRAIN_MYMODEL, TRAIN_VIT
from nnunetv2.training.nnUNetTrainer.m2f_utils import DenseToM2FTargetConverter
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer_m2f import nnUNetTrainer_m2f
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer_segformer import nnUNetTrainer_segformer
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer_vit import nnUNetTrainer_vit
from nnunetv2.training.nnUNetTrainer.segformer_config import SegFormernnUNetConfig
from nnunetv2.training.vit.loss_curves import TERMS
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")
DATASET = "Dataset001_Test"
DATASET_JSON = {
    "labels": {"background": 0, "artery": 1, "vein": 2},
    "channel_names": {"0": "red", "1": "green", "2": "blue"},
    "file_ending": ".png",
}
BACKBONE = {"backbone_size": "tiny", "pretrained": False}
TRAIN = {"num_epochs": 2, "batch_size": 2, "patch_size": [64, 64], "seed": 3}
VIT = {"model": {**BACKBONE, "decoder": {"hidden_size": 32}}, "train": TRAIN}
SEGFORMER = {"model": {**BACKBONE, "decoder_hidden_size": 32}, "train": TRAIN}
M2F = {
    "model": {**BACKBONE, "hidden_dim": 32, "num_queries": 8},
    "lora": {"enabled": False},
    "m2f_train": {"num_points": 64},
    "train": TRAIN,
}
SMALL = {nnUNetTrainer_vit: VIT, nnUNetTrainer_segformer: SEGFORMER, nnUNetTrainer_m2f: M2F}


@pytest.fixture
def base_plans() -> dict:
    configuration = {
        "data_identifier": "nnUNetPlans_2d",
        "batch_size": 2,
        "patch_size": [64, 64],
        "batch_dice": False,
        "normalization_schemes": ["RGBTo01Normalization"] * 3,
        "architecture": {"network_class_name": "a.UNet", "arch_kwargs": {}, "_kw_requires_import": []},
    }
    plans = {"dataset_name": DATASET, "plans_name": "nnUNetPlans", "label_manager": "LabelManager"}
    return {**plans, "image_reader_writer": "NaturalImage2DIO", "configurations": {"2d": configuration}}


@pytest.fixture
def make_trainer(base_plans: dict, tmp_path: Path, monkeypatch) -> Callable:
    """Make trainers of small experiments, each with a results folder of its own."""
    cases = tmp_path / "preprocessed" / DATASET / "nnUNetPlans_2d"
    cases.mkdir(parents=True)
    (cases / "case.b2nd").touch()  # by which nnU-Net tells the format of the data
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))

    def make(
        trainer_class: type, values: dict | None = None, results: str = "results", config_path: str | None = None
    ) -> nnUNetTrainer_vit:
        monkeypatch.setenv("nnUNet_results", str(tmp_path / results))
        config = build(trainer_class.config_class, values or SMALL[trainer_class], "test")
        plans = derive_plans(base_plans, "2d", DATASET_JSON, config, "mine", config_path)
        return trainer_class(json.loads(json.dumps(plans)), "2d", 0, DATASET_JSON, CPU)

    return make


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (2, 1, 64, 64), generator=generator).float()
    return {"data": torch.rand(2, 3, 64, 64, generator=generator), "target": labels}


# --- the flat schema of SegFormer -----------------------------------------------------------------------------------


def test_the_segformer_trainer_gives_its_flat_configuration(make_trainer):
    values = {**SEGFORMER, "model": {**SEGFORMER["model"], "upsampling": "full"}, "lora": {"r": 4}}
    trainer = make_trainer(nnUNetTrainer_segformer, values)
    flat = trainer.segformer_config
    assert isinstance(flat, SegFormernnUNetConfig) and as_stored(flat.stored()) == as_stored(trainer.config)
    assert trainer.config.model.decoder == {**flat.stored().model.decoder, "decoder_dropout": 0.1}
    assert (flat.model.decoder_hidden_size, flat.model.upsampling, flat.lora.r) == (32, "full", 4)
    assert (flat.train.patch_size, flat.train.initial_lr) == ([64, 64], 0.001)


@pytest.mark.integration
def test_plans_that_the_flat_schema_cannot_express_train_all_the_same(make_trainer, base_plans):
    config = build(nnUNetTrainer_vit.config_class, VIT, "test")
    make_trainer(nnUNetTrainer_vit)  # sets the folders
    plans = derive_plans(base_plans, "2d", DATASET_JSON, config, "mine")
    assert nnUNetTrainer_segformer(plans, "2d", 0, DATASET_JSON, CPU).segformer_config is None


@pytest.mark.parametrize(
    ("overrides", "mode"),
    [([], "lora"), (["lora.enabled=false"], "frozen"), (["lora.enabled=false", "model.freeze_backbone=false"], "full")],
)
def test_the_segformer_command_trains_in_all_three_modes(make_trainer, overrides: list[str], mode: str):
    tiny = ["model.backbone_size=tiny", "model.pretrained=false", *overrides]
    config = load_config(SegFormernnUNetConfig, "segformer_default", tiny)
    assert config.mode == mode
    flat = SegFormernnUNetConfig.from_stored(config)
    values = {**SEGFORMER, "lora": {"enabled": flat.lora.enabled}}
    values["model"] = {**SEGFORMER["model"], "freeze_backbone": flat.model.freeze_backbone}
    trainer = make_trainer(nnUNetTrainer_segformer, values)
    trainer.initialize()
    trains = {name for name, p in trainer.network.backbone.named_parameters() if p.requires_grad}
    adapters = {name for name in trains if "lora_" in name}
    assert trainer.config.mode == mode and bool(trains) == (mode != "frozen")
    assert (adapters == trains) == (mode != "full")


# --- where configurations are found ---------------------------------------------------------------------------------


def test_m2f_default_lies_beside_the_trainers():
    path = find_config("m2f_default")
    assert path.parts[-5:] == ("nnunetv2", "training", "nnUNetTrainer", "configs", "m2f_default.yaml")
    assert "m2f_default" in packaged_configs() and len(packaged_configs()) == len(set(packaged_configs()))
    assert find_config("m2f").parts[-3:] == ("nnunetv2", "configs", "m2f.yaml")


def test_the_folder_of_configurations_does_not_disturb_the_search_for_trainers():
    assert recursive_find_trainer_class_by_name("nnUNetTrainer_m2f") is nnUNetTrainer_m2f
    with pytest.raises(RuntimeError):  # after every module of the folder was looked through
        recursive_find_trainer_class_by_name("nnUNetTrainer_of_nobody")


# --- the UperNet baseline under its first names ---------------------------------------------------------------------


def read_command(*arguments: str) -> TrainingArguments:
    return parse_arguments(TRAIN_MYMODEL, ["101", "2d", "0", *arguments])


@pytest.mark.parametrize("given", [[], ["--c"], ["--config", "upernet_lora"]], ids=str)
def test_the_command_of_the_baseline_trains_upernet_with_its_own_trainer(given: list[str]):
    config = read_experiment(read_command(*given, "model.pretrained=false"))
    assert config.trainer == "nnUNetTrainerNoDeepSupervision_mymodel"
    assert config.model.model_path == "nnunetv2.model.model_upernet"
    assert config.mode == ("lora" if "upernet_lora" in given else "frozen")


def test_the_command_of_the_baseline_takes_another_trainer_or_that_of_the_plans(tmp_path: Path):
    args = read_command("-tr", "nnUNetTrainer_mymodel", "model.pretrained=false")
    assert read_experiment(args).trainer == "nnUNetTrainer_mymodel"
    path = write_config(tmp_path, trainer="nnUNetTrainer_vit")
    assert read_experiment(read_command("--config", str(path))).trainer == "nnUNetTrainer_vit"
    args = read_command("--name", "mine", "--c")
    assert args.trainer_class_name is None and read_experiment(args) is None


@pytest.mark.parametrize("name", ["vit", "segformer", "m2f", "nodeepsupervision_mymodel"])
def test_every_training_command_is_installed_and_a_script(name: str):
    (command,) = entry_points(group="console_scripts", name=f"nnUNetv2_train_{name}")
    script = runpy.run_path(str(ROOT / f"nnUNetv2_train_{name}.py"))
    assert command.load() is script["run_training_entry"]


def test_the_page_for_users_of_the_first_versions_names_what_is_there():
    text = (ROOT / "documentation" / "coming_from_a_fork.md").read_text()
    scripts = set(re.findall(r"`(nnUNetv2_train_\w+)\.py`", text))
    trainers = set(re.findall(r"`(nnUNetTrainer\w+)`", text))
    assert scripts and trainers
    for name in scripts:
        assert (ROOT / f"{name}.py").is_file() and entry_points(group="console_scripts", name=name)
    for name in trainers:
        assert issubclass(recursive_find_trainer_class_by_name(name), nnUNetTrainer_vit)
    old = build(nnUNetTrainer_m2f.config_class, yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1]), "")
    assert (old.model.num_queries, old.train.optimizer, old.lora.enabled) == (20, "sgd", True)


# --- targets in nnU-Net's format for deep supervision ---------------------------------------------------------------


@pytest.mark.integration
@pytest.mark.parametrize("trainer_class", [nnUNetTrainer_vit, nnUNetTrainer_m2f])
def test_of_a_list_of_targets_the_first_one_is_taken(make_trainer, trainer_class: type):
    plain = batch()
    listed = {**plain, "target": [plain["target"], plain["target"][..., ::2, ::2]]}
    outputs = []
    for name, given in (("plain", plain), ("listed", listed)):
        trainer = make_trainer(trainer_class, results=name)
        trainer.initialize()
        trainer.network.train()
        torch.manual_seed(0)
        step = trainer.train_step(given)
        trainer.network.eval()
        torch.manual_seed(0)
        with torch.no_grad():
            outputs.append((step, trainer.validation_step(given)))
    for theirs, ours in zip(*outputs, strict=True):
        assert theirs.keys() == ours.keys() and "loss" in ours
        assert all(np.array_equal(theirs[key], ours[key]) for key in ours)


def test_the_converter_takes_a_list_of_targets():
    target = batch()["target"]
    for converter in (DenseToM2FTargetConverter(None), DenseToM2FTargetConverter(None, regions=True)):
        for ours, theirs in zip(converter([target, target[..., ::2, ::2]]), converter(target), strict=True):
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


# --- the auxiliary losses of Mask2Former ----------------------------------------------------------------------------


def without_auxiliary_losses() -> dict:
    return {**M2F, "m2f_train": {**M2F["m2f_train"], "auxiliary_losses": False}}


@pytest.mark.integration
def test_without_auxiliary_losses_the_last_layer_alone_is_compared(make_trainer):
    trainer = make_trainer(nnUNetTrainer_m2f, without_auxiliary_losses())
    trainer.initialize()
    trainer.network.eval()
    data, targets = batch()["data"], trainer.target_converter(batch()["target"])
    with torch.no_grad():
        queries = trainer.network.forward_queries(data)
        torch.manual_seed(0)
        last = trainer.loss(queries["pred_masks"], targets, queries["pred_logits"])
        torch.manual_seed(0)
        output = trainer.validation_step(batch())
    assert len(queries["aux_outputs"]) > 1 and set(last) == set(TERMS)
    assert float(output["loss"]) == pytest.approx(float(trainer.loss.loss_total(last)), rel=1e-5)
    trainer.network.train()
    step = trainer.train_step(batch())
    assert sum(step[term] for term in TERMS) == pytest.approx(float(step["loss"]), rel=1e-5)
    # a parameter without a gradient would stop distributed training
    assert [name for name, p in trainer.network.named_parameters() if p.requires_grad and p.grad is None] == []
    everything = make_trainer(nnUNetTrainer_m2f)
    everything.initialize()
    everything.network.train()
    assert float(everything.train_step(batch())["loss"]) > 3 * float(step["loss"])  # of ten layers


@pytest.mark.integration
def test_plans_without_the_switch_are_those_with_all_losses(make_trainer, tmp_path: Path):
    new = make_trainer(nnUNetTrainer_m2f).plans_manager.plans
    old = copy.deepcopy(new)
    del old["configurations"]["2d"]["vit"]["m2f_train"]["auxiliary_losses"]
    assert nnUNetTrainer_m2f(copy.deepcopy(old), "2d", 0, DATASET_JSON, CPU).m2f_config.m2f_train.auxiliary_losses
    path = write_new_plans(tmp_path, old)
    before = path.read_bytes()
    assert write_new_plans(tmp_path, new) == path and path.read_bytes() == before  # further folds of an experiment
    without = make_trainer(nnUNetTrainer_m2f, without_auxiliary_losses()).plans_manager.plans
    with pytest.raises(ExperimentError, match="auxiliary_losses: True → False"):
        write_new_plans(tmp_path, without)


# --- the path of the configuration ----------------------------------------------------------------------------------


def read_arguments(*arguments: str) -> TrainingArguments:
    return parse_arguments(TRAIN_VIT, ["1", "2d", "0", *arguments])


def write_config(folder: Path, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "mine.yaml").write_text(json.dumps({**VIT, **changes}))  # which is YAML too
    return folder / "mine.yaml"


def test_the_source_of_a_configuration(tmp_path: Path, monkeypatch):
    path = write_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert config_source("upernet") == "upernet"
    assert config_source("mine.yaml") == config_source(str(path)) == str(path)


@pytest.mark.integration
def test_the_checkpoint_names_the_configuration_that_the_command_was_given(make_trainer, base_plans, tmp_path: Path):
    make_trainer(nnUNetTrainer_vit)  # sets the folders
    path = write_config(tmp_path)
    args = read_arguments("--config", str(path))
    plans = json.loads(json.dumps(derive(args, read_experiment(args), base_plans, DATASET_JSON, CPU)))
    trainer = nnUNetTrainer_vit(copy.deepcopy(plans), "2d", 0, DATASET_JSON, CPU)
    trainer.initialize()
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    path.unlink()
    init_args = read_checkpoint(Path(trainer.output_folder) / "checkpoint_final.pth")["init_args"]
    assert init_args["config_path"] == str(path)
    assert init_args["plans"]["configurations"]["2d"]["vit"] == plans["configurations"]["2d"]["vit"]
    model = Path(trainer.output_folder_base)
    (model / "plans.json").write_text(json.dumps(plans))
    (model / "dataset.json").write_text(json.dumps(DATASET_JSON))
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,))
    for name, value in trainer.network.state_dict().items():
        assert torch.equal(predictor.network.state_dict()[name], value)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("trainer_class", "key", "default"),
    [
        (nnUNetTrainer_vit, "config_path", "upernet"),
        (nnUNetTrainer_segformer, "segformer_config_path", "segformer_default"),
        (nnUNetTrainer_m2f, "m2f_config_path", "m2f_default"),
    ],
)
def test_the_path_has_the_name_of_the_trainers_argument(
    make_trainer, base_plans, trainer_class: type, key: str, default: str
):
    assert make_trainer(trainer_class).my_init_kwargs[key] is None  # plans of no file, such as those of older versions
    assert make_trainer(trainer_class, config_path="/a/mine.yaml").my_init_kwargs[key] == "/a/mine.yaml"
    trainer = trainer_class(base_plans, "2d", 0, DATASET_JSON, CPU)
    kwargs = trainer.my_init_kwargs
    assert kwargs[key] == default and [name for name in kwargs if name.endswith("config_path")] == [key]
    rebuilt = trainer_class(**copy.deepcopy(kwargs))  # as scripts do with the `init_args` of a checkpoint
    assert rebuilt.my_init_kwargs[key] == default and rebuilt.config == trainer.config


@pytest.mark.integration
def test_the_path_alone_makes_no_other_experiment(make_trainer, tmp_path: Path):
    first = make_trainer(nnUNetTrainer_vit, config_path="upernet").plans_manager.plans
    moved = make_trainer(nnUNetTrainer_vit, config_path="/elsewhere/mine.yaml").plans_manager.plans
    path = write_new_plans(tmp_path, first)
    assert write_new_plans(tmp_path, moved) == path and json.loads(path.read_text()) == first
    path.rename(tmp_path / "plans.json")
    check_results(tmp_path, moved)
    other = copy.deepcopy(moved)
    other["configurations"]["2d"]["vit"]["train"]["seed"] = 4
    with pytest.raises(ExperimentError, match="seed: 3 → 4"):
        check_results(tmp_path, other)


@pytest.mark.integration
def test_a_training_is_continued_with_the_same_configuration_in_another_place(base_plans, tmp_path: Path):
    first = read_arguments("--config", str(write_config(tmp_path / "here")))
    write_new_plans(tmp_path, derive(first, read_experiment(first), base_plans, DATASET_JSON, CPU))
    again = read_arguments("--c", "--config", str(write_config(tmp_path / "there")))
    stored = stored_plans(again, read_experiment(again), tmp_path, DATASET_JSON)
    assert stored["vit_config_path"] == str(tmp_path / "here" / "mine.yaml")
    with pytest.raises(ExperimentError, match="trained with another configuration"):
        other = replace(read_experiment(again), trainer="nnUNetTrainer_mymodel")
        stored_plans(again, other, tmp_path, DATASET_JSON)


# --- what a training notes of itself --------------------------------------------------------------------------------


@pytest.mark.integration
@pytest.mark.parametrize("trainer_class", SMALL)
def test_the_architecture_is_logged_once(make_trainer, trainer_class: type, tmp_path: Path, capsys):
    values = {**SMALL[trainer_class], "lora": {"enabled": True, "target_modules": ["qkv", "proj"]}}
    trainer = make_trainer(trainer_class, values)
    trainer.initialize()
    log = Path(trainer.log_file).read_text()
    assert log.count("Architecture:") == 1 and "Architecture:" not in capsys.readouterr().out
    (backbone,) = [line for line in log.splitlines() if line.startswith("backbone: ")]
    assert backbone.endswith("Eva dinov3 tiny, 4 blocks, embed_dim 96, patch 16")
    for kind in ("attn.qkv", "attn.proj"):
        assert log.count(f"LoRA: 4 layers {kind}, each lora.Linear(") == 1
    for name, part in trainer.network.named_children():
        assert name == "backbone" or f"{name}: {part!r}" in log
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    resumed = make_trainer(trainer_class, values, results="resumed")
    resumed.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    log = Path(resumed.log_file).read_text()
    assert "Architecture:" not in log and "Backbone mode: lora" in log


def test_versions_are_noted_at_every_start(make_trainer, monkeypatch):
    trainer = make_trainer(nnUNetTrainer_vit)
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", lambda _trainer: None)  # which loads the data
    folder = Path(trainer.output_folder)
    trainer.on_train_start()
    (session,) = json.loads((folder / "versions.json").read_text())
    assert session["epoch"] == 0 and session["versions"] == versions.installed_versions()
    assert set(session["versions"]) == {
        "python", "torch", "timm", "transformers", "peft", "nnunetv2", "nnunet-vit"
    }  # fmt: skip
    assert session["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    log = Path(trainer.log_file).read_text()
    assert f"Versions: python {session['versions']['python']}, torch " in log and "other versions" not in log
    trainer.current_epoch = 1
    other = {**session["versions"], "timm": "9.9.9"}
    monkeypatch.setattr(versions, "installed_versions", lambda: other)
    trainer.on_train_start()
    sessions = json.loads((folder / "versions.json").read_text())
    assert [(s["epoch"], s["versions"]["timm"]) for s in sessions] == [(0, session["versions"]["timm"]), (1, "9.9.9")]
    log = Path(trainer.log_file).read_text()
    assert "with other versions" in log and f"  timm: '{session['versions']['timm']}' → '9.9.9'" in log
    trainer.current_epoch = trainer.num_epochs  # `--c` of a finished training
    trainer.on_train_start()
    assert json.loads((folder / "versions.json").read_text()) == sessions
    assert list(folder.glob(".*")) == []


def test_a_training_that_starts_anew_or_with_the_same_versions_is_not_warned_of(tmp_path: Path, monkeypatch):
    assert "WARNING" not in versions.record_versions(tmp_path, 0)
    assert "WARNING" not in versions.record_versions(tmp_path, 5)
    monkeypatch.setattr(versions, "installed_versions", lambda: {"torch": "9.9.9"})
    assert "WARNING" not in versions.record_versions(tmp_path, 0)
    assert [session["epoch"] for session in versions.read_sessions(tmp_path)] == [0, 5, 0]


@pytest.mark.parametrize("content", ["[{", '{"a": 1}', "[1]"])
def test_a_damaged_file_of_versions_does_not_stop_a_training(tmp_path: Path, content: str):
    (tmp_path / "versions.json").write_text(content)
    assert versions.record_versions(tmp_path, 2).startswith("Versions: python ")
    assert len(versions.read_sessions(tmp_path)) == 1


# --- resuming -------------------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_an_optimizer_of_other_groups_is_told(make_trainer):
    full = {**VIT, "model": {**VIT["model"], "freeze_backbone": False}}
    plain = make_trainer(nnUNetTrainer_vit, full)
    plain.initialize()
    path = str(Path(plain.output_folder) / "checkpoint_latest.pth")
    plain.save_checkpoint(path)
    decayed = make_trainer(nnUNetTrainer_vit, {**full, "train": {**TRAIN, "layer_decay": 0.5}}, "other_results")
    with pytest.raises(ExperimentError, match=r"checkpoint_latest\.pth .*parameter groups.*prediction from it works"):
        decayed.load_checkpoint(path)
