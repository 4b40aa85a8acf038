"""Mask classification in nnU-Net: targets, predictions, configuration, and the trainer of Mask2Former, EoMT and PMT
from training to prediction.
"""

import copy
import functools
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dinov3.weights.reading import read_checkpoint
from nnunetv2.experiment.derive import derive_plans
from nnunetv2.experiment.schema import load_config
from nnunetv2.training.nnUNetTrainer.m2f_config import M2FnnUNetConfig
from nnunetv2.training.nnUNetTrainer.m2f_utils import DenseToM2FTargetConverter, m2f_predictions_to_segmentation
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer_m2f import nnUNetTrainer_m2f
from nnunetv2.training.vit.loss_curves import TERMS, curve_names, terms_figure
from nnunetv2.training.vit.online_metrics import count_pixels
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

CPU = torch.device("cpu")
NETWORKS = ("m2f", "eomt", "pmt")
# In the worker of the fixture that trains what a test takes
IN_WORKER = {network: pytest.mark.xdist_group(f"trained_{network}") for network in NETWORKS}


# --- targets, predictions, configuration ------------------------------------------------------------------------------


def test_target_converter():
    labels = torch.tensor([[[0, 1, -1], [2, 2, 0]]])
    for target in (labels, labels[:, None], labels[:, None].float()):
        (converted,) = DenseToM2FTargetConverter()(target)
        assert converted["labels"].tolist() == [0, 1, 2] and converted["masks"].dtype == torch.float32
        assert converted["valid"].tolist() == [[True, True, False], [True, True, True]]
        assert converted["masks"][:, 0, 2].tolist() == [0, 0, 0]  # what is ignored is of no class, background included
    (converted,) = DenseToM2FTargetConverter(ignore_label=None)(labels.clamp(min=0))
    assert converted["labels"].tolist() == [0, 1, 2] and "valid" not in converted
    empty, full = DenseToM2FTargetConverter(3)(torch.tensor([[[3, 3]], [[0, 1]]]))
    assert empty["masks"].shape == (0, 1, 2) and empty["labels"].numel() == 0 and not empty["valid"].any()
    assert full["labels"].tolist() == [0, 1]


def test_target_converter_of_regions():
    regions = torch.tensor([[[1, 1, 0]], [[1, 0, 0]], [[0, 1, 1]]], dtype=torch.bool)[None]
    (converted,) = DenseToM2FTargetConverter(None, regions=True)(regions)
    assert converted["labels"].tolist() == [0, 1, 2] and torch.equal(converted["masks"], regions[0].float())
    (converted,) = DenseToM2FTargetConverter(7, regions=True)(regions)  # the last channel is what is ignored
    assert converted["labels"].tolist() == [0, 1] and converted["valid"].tolist() == [[True, False, False]]
    assert converted["masks"].tolist() == [[[1, 0, 0]], [[1, 0, 0]]]
    # one region is a region too, and not a map of the labels 0 and 1
    (converted,) = DenseToM2FTargetConverter(None, regions=True)(regions[:, :1])
    assert converted["labels"].tolist() == [0] and torch.equal(converted["masks"], regions[0, :1].float())


def test_predictions_to_segmentation():
    # two queries: class scores 0.6, 0.2 (no object 0.2) and 0.1, 0.4 (0.5: it counts less); masks 0.9 and 0.5
    classes = torch.tensor([[[0.6, 0.2, 0.2], [0.1, 0.4, 0.5]]]).log()
    masks = torch.tensor([math.log(9.0), 0.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    logits = m2f_predictions_to_segmentation(masks, classes, (8, 6))
    assert logits.shape == (1, 2, 8, 6)
    scores = torch.tensor([0.9 * 0.6 + 0.5 * 0.1, 0.9 * 0.2 + 0.5 * 0.4])
    assert torch.allclose(logits.softmax(1)[0, :, 3, 3], scores / scores.sum(), atol=1e-5)
    union = torch.tensor([1 - (1 - 0.9 * 0.6) * (1 - 0.5 * 0.1), 1 - (1 - 0.9 * 0.2) * (1 - 0.5 * 0.4)])
    regions = m2f_predictions_to_segmentation(masks, classes, (8, 6), regions=True)
    assert torch.allclose(regions.sigmoid()[0, :, 3, 3], union, atol=1e-5)


def test_m2f_config_loading(workplace):
    config = load_config(M2FnnUNetConfig, "m2f_default")
    assert config.model.hidden_dim == 2048 and config.lora.target_modules == ["qkv", "proj"]
    assert config.m2f_train.num_points == 12544 and config.gradient_clip == 10.0
    assert config.train.precision == "float32"  # decided by model.autocast_dtype
    config = load_config(M2FnnUNetConfig, str(workplace.root / "m2f_tiny.yaml"), ["model.autocast_dtype=bfloat16"])
    assert (config.model.num_queries, config.mode, config.train.precision) == (8, "frozen", "bfloat16")


# --- the trainer ------------------------------------------------------------------------------------------------------


@pytest.fixture
def make_trainer(workplace, base_plans: dict, dataset_json: dict, tmp_path: Path, monkeypatch) -> Callable:
    """Make trainers of the tiny experiments that write to a folder of the test."""
    for name, folder in workplace.folders.items():
        monkeypatch.setenv(name, str(folder))

    @functools.cache  # a derivation runs the network, which takes seconds without memory too
    def derive(network: str, description: str, *overrides: str) -> dict:
        config = load_config(M2FnnUNetConfig, str(workplace.root / f"{network}_tiny.yaml"), overrides)
        return derive_plans(base_plans, "2d", json.loads(description), config, "tiny")

    def make(
        *overrides: str,
        network: str = "m2f",
        results: str = "results",
        dataset_changes: dict[str, object] | None = None,
    ) -> nnUNetTrainer_m2f:
        monkeypatch.setenv("nnUNet_results", str(tmp_path / results))
        description = {**dataset_json, **(dataset_changes or {})}
        plans = copy.deepcopy(derive(network, json.dumps(description), *overrides))
        return nnUNetTrainer_m2f(plans, "2d", 0, description, CPU)

    return make


class Interrupted(Exception):
    pass


def record_steps(trainer: nnUNetTrainer_m2f) -> list[list[float]]:
    """Note the learning rates and the probabilities of masks with which each step of a training is made."""
    steps, network, step = [], trainer.plain_network, trainer.train_step
    set_probabilities = network.set_mask_probabilities
    network.set_mask_probabilities = lambda values: (steps.append(list(values)), set_probabilities(values))

    def recorded(batch: dict) -> dict:
        output = step(batch)
        steps.append([group["lr"] for group in trainer.optimizer.param_groups])
        return output

    trainer.train_step = recorded
    return steps


@pytest.mark.parametrize(
    ("network", "mode"),
    [
        pytest.param("m2f", "lora.enabled=true", marks=pytest.mark.nightly),  # daily with a dense decoder
        ("m2f", "model.freeze_backbone=false"),
        ("eomt", "model.freeze_backbone=false"),
        pytest.param("eomt", "lora.enabled=true", marks=pytest.mark.nightly),
        ("pmt", "model.freeze_backbone=true"),
    ],
    ids=str,
)
def test_a_resumed_training_equals_an_uninterrupted_one(make_trainer, network: str, mode: str):
    straight = make_trainer(mode, network=network, results="straight")
    straight.initialize()
    steps = record_steps(straight)
    straight.run_training()
    first = make_trainer(mode, network=network, results="resumed")
    first.initialize()
    steps_of_first = record_steps(first)
    on_epoch_end = first.on_epoch_end

    def stop() -> None:
        on_epoch_end()
        raise Interrupted

    first.on_epoch_end = stop
    with pytest.raises(Interrupted):
        first.run_training()
    second = make_trainer(mode, network=network, results="resumed")
    second.load_checkpoint(str(Path(second.output_folder) / "checkpoint_latest.pth"))
    steps_of_second = record_steps(second)
    second.run_training()
    assert steps_of_first + steps_of_second == steps and len(steps) == (6 if network == "m2f" else 12)
    for key in (
        "lrs",
        "train_losses",
        "val_losses",
        *(f"{phase}_{term}" for phase in ("train", "val") for term in TERMS),
    ):
        values = second.logger.get_value(key, None)
        assert len(values) == 2 and values == straight.logger.get_value(key, None), key
    for name, value in straight.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[name]), name
    for picture in ("progress_loss_terms.png", "training_schedule.png"):
        assert (Path(second.output_folder) / picture).stat().st_size > 10_000


def test_learning_rates_and_masks_follow_their_schedules(make_trainer):
    trainer = make_trainer("train.backbone_warmup_fraction=0.3", "train.warmup_fraction=0.4", network="eomt")
    trainer.initialize()
    steps = record_steps(trainer)
    trainer.run_training()
    masks, rates = steps[::2], steps[1::2]  # of six steps, of which 2.4 warm up the new parts and 1.8 the backbone
    expected = [[1 - step / 6 / 0.7, 1 - max(0, step / 6 - 0.3) / 0.7] for step in range(6)]
    assert [p for pair in masks for p in pair] == pytest.approx([max(0, t) ** 0.9 for pair in expected for t in pair])
    decoder, backbone = zip(*rates, strict=True)
    warm = [1 / 3.4, 2 / 3.4, 3 / 3.4, *((1 - (step - 2.4) / 3.6) ** 0.9 for step in (3, 4, 5))]
    assert decoder == pytest.approx([0.001 * factor for factor in warm])
    assert backbone == pytest.approx([0, 0, 0, 0.001 * 1.6 / 2.8, 0.001 * 2.6 / 2.8, 0.001 * (1 - 0.8 / 1.8) ** 0.9])


@pytest.mark.parametrize("network", ["eomt", "pmt"])
def test_masks_apply_in_training_only(make_trainer, network: str):
    trainer = make_trainer(network=network)
    trainer.on_train_start()
    batch = next(trainer.dataloader_val)
    losses = {}
    for mode in (False, True):
        trainer.network.train(mode)
        for probability in (0.0, 1.0):
            trainer.plain_network.set_mask_probabilities([probability] * 2)
            torch.manual_seed(0)
            with torch.no_grad():
                losses[probability, mode] = float(trainer.validation_step(batch)["loss"])
    trainer.on_train_end()
    assert losses[0.0, False] == losses[1.0, False] and losses[0.0, True] != losses[1.0, True]


@pytest.mark.parametrize(("network", "layers"), [("m2f", 10), ("eomt", 3), ("pmt", 3)])
def test_the_terms_add_up_to_the_loss_of_all_layers(make_trainer, network: str, layers: int):
    trainer = make_trainer(network=network)
    trainer.on_train_start()
    batch = next(trainer.dataloader_val)
    trainer.network.eval()
    with torch.no_grad():
        torch.manual_seed(0)
        output = trainer.validation_step(batch)
        queries = trainer.network.forward_queries(batch["data"])
        torch.manual_seed(0)
        losses = trainer.loss.of_all_layers(queries, trainer.target_converter(batch["target"]))
        last_only = trainer.loss(
            {**queries}["pred_masks"], trainer.target_converter(batch["target"]), queries["pred_logits"]
        )
    assert float(output["loss"]) == pytest.approx(float(trainer.loss.loss_total(losses)), rel=1e-5)
    assert sum(output[term] for term in TERMS) == pytest.approx(float(output["loss"]), rel=1e-5)
    assert float(output["loss"]) > layers / 2 * float(trainer.loss.loss_total(last_only))
    trainer.network.train()
    step = trainer.train_step(batch)
    assert sum(step[term] for term in TERMS) == pytest.approx(float(step["loss"]), rel=1e-5)
    trainer.on_train_end()


def scramble(network: torch.nn.Module) -> None:
    """Draw the weights of a decoder, wide enough for a different class at every pixel."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.decoder.parameters():
            parameter.normal_(std=0.3, generator=generator)


@pytest.mark.parametrize("network", [pytest.param("m2f", marks=IN_WORKER["m2f"]), *NETWORKS[1:]])
def test_the_online_dice_is_that_of_the_validation(make_trainer, network: str, request: pytest.FixtureRequest):
    """One validation case, a patch that is the whole image, no mirroring; weights that find something and stay."""
    dataset = make_trainer(results="size").get_tr_and_val_datasets()[1]
    (case,) = dataset.identifiers
    height, width = dataset.load_case(case)[0].shape[-2:]
    short = ("train.num_epochs=1", "train.num_iterations_per_epoch=1", "train.initial_lr=1e-9")
    trainer = make_trainer(*short, f"train.patch_size=[{height},{width}]", network=network)
    trainer.initialize()
    if network == "m2f":
        (trained,) = request.getfixturevalue("trained_m2f").results.rglob("checkpoint_final.pth")
        trainer.network.load_state_dict(read_checkpoint(trained)["network_weights"])
    else:
        scramble(trainer.network)
    trainer.oversample_foreground_percent = 0.0  # nnU-Net moves the patch to the foreground, beyond the image's border
    trainer.run_training()
    trainer.inference_allowed_mirroring_axes = None
    trainer.perform_actual_validation()
    summary = json.loads((Path(trainer.output_folder) / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 1
    truth = summary["foreground_mean"]["Dice"]
    assert truth > (0.1 if network == "m2f" else 0.02)  # it finds something, or any two zeros would be equal
    assert trainer.logger.get_value("mean_fg_dice", -1) == pytest.approx(truth, abs=1e-4)


@pytest.mark.parametrize("network", ["eomt", "pmt"])
def test_a_step_in_bfloat16_is_finite(make_trainer, network: str, monkeypatch: pytest.MonkeyPatch):
    """The precision of the packaged configurations, which this CPU may not compute by itself."""
    monkeypatch.setattr("dinov3.eval.segmentation.precision.cpu_has_bfloat16", lambda: True)
    trainer = make_trainer("train.precision=bfloat16", network=network)
    trainer.on_train_start()
    trainer.network.train()
    step = trainer.train_step(next(trainer.dataloader_train))
    trainer.on_train_end()
    assert sum(step[term] for term in TERMS) == pytest.approx(float(step["loss"]), rel=1e-3)


def test_what_is_ignored_is_not_counted():
    class Labels:
        has_regions, has_ignore_label, ignore_label = False, True, 2

    logits = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]).view(1, 2, 1, 3)  # labels 1, 0, 0
    target = torch.tensor([1, 1, 2]).view(1, 1, 1, 3)
    counts = count_pixels(logits, target, Labels())
    assert [counts[name].tolist() for name in ("tp_hard", "fp_hard", "fn_hard")] == [[1], [0], [1]]
    target[..., 0] = 2
    assert count_pixels(logits, target, Labels())["fp_hard"].tolist() == [0]

    class Regions:
        has_regions, has_ignore_label, ignore_label = True, True, 3

    target = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 1]]).view(1, 3, 1, 3)  # the last channel is what is ignored
    logits = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 1.0]]).view(1, 2, 1, 3)
    counts = count_pixels(logits, target, Regions())
    assert [counts[name].tolist() for name in ("tp_hard", "fp_hard", "fn_hard")] == [[2, 0], [0, 1], [0, 1]]


LABELS = {
    "ignore": ({"background": 0, "artery": 1, "ignore": 2}, None),
    "regions": ({"background": 0, "vessel": [1, 2], "vein": 2}, [1, 2]),
    "regions and ignore": ({"background": 0, "vessel": [1, 2], "vein": 2, "ignore": 3}, [1, 2]),
    "one region": ({"background": 0, "vessel": [1, 2]}, [1]),
}


@pytest.mark.parametrize(
    ("network", "kind"),
    [*(("m2f", kind) for kind in LABELS), ("eomt", "regions and ignore"), ("pmt", "regions and ignore")],
)
def test_the_trainer_knows_regions_and_what_is_ignored(make_trainer, network: str, kind: str):
    """The labels 0, 1 and 2 of four pixels, and one more that is ignored where the data set has such a label."""
    labels, order = LABELS[kind]
    changes = {"labels": labels, **({"regions_class_order": order} if order else {})}
    trainer = make_trainer(network=network, dataset_changes=changes)
    trainer.initialize()
    ignored = labels.get("ignore")
    image = torch.tensor([[0, 1, 2 if ignored != 2 else 1, 0 if ignored is None else ignored]])
    regions = [name for name, value in labels.items() if isinstance(value, list) or (order and name == "vein")]
    if order:  # as nnU-Net's loaders give them
        values = [torch.tensor(labels[name]) for name in regions] + ([torch.tensor([ignored])] if ignored else [])
        target = torch.stack([torch.isin(image, value) for value in values])[None].to(torch.uint8)
    else:
        target = image[None, None].float()
    (converted,) = trainer.target_converter(target)
    assert converted["labels"].tolist() == [0, 1][: 1 if kind == "one region" else 2]
    wanted = [[0, 1, 1, 0], [0, 0, 1, 0]] if order else [[1, 0, 0, 0], [0, 1, 1, 0]]
    assert converted["masks"].int().flatten(1).tolist() == wanted[: len(converted["labels"])]
    valid = converted.get("valid", torch.ones(1, 4, dtype=torch.bool))
    assert valid[0].tolist() == [True, True, True, ignored is None]
    with torch.no_grad():
        logits = trainer.network.eval()(torch.rand(1, 3, 64, 64))
    normalised = torch.allclose(logits.exp().sum(1), torch.ones(64, 64), atol=1e-4)
    assert logits.shape[1] == (len(regions) if order else 2) and normalised == (order is None)


def test_the_curves_are_those_of_training_and_validation():
    curves = {name: [float(number), float(number + 1)] for number, name in enumerate(curve_names())}
    drawn = {
        f"{line.get_label()}_{panel.get_title().partition(',')[0]}": list(line.get_ydata())
        for panel in terms_figure(curves).axes
        for line in panel.lines
    }
    assert drawn == curves


def test_plain_plans_and_both_paths_of_the_class(workplace, base_plans, dataset_json, tmp_path, monkeypatch):
    for name, folder in workplace.folders.items():
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    path = str(workplace.root / "m2f_tiny.yaml")
    found = recursive_find_trainer_class_by_name("nnUNetTrainer_m2f")
    trainer = found(base_plans, "2d", 0, dataset_json, CPU, m2f_config_path=path)
    assert trainer.plans_manager.plans_name == "nnUNetPlans_m2f_tiny"
    assert trainer.m2f_config is trainer.config and trainer.m2f_config.model.num_queries == 8
    assert trainer.my_init_kwargs["m2f_config_path"] == path
    assert trainer.gradient_clip == 10.0 and isinstance(trainer.target_converter, DenseToM2FTargetConverter)
    from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainer_m2f import (
        nnUNetTrainer_m2f as other,
    )

    assert other is nnUNetTrainer_m2f


def test_the_backbone_learns_slower_where_it_trains(make_trainer):
    trainer = make_trainer("model.freeze_backbone=false")
    trainer.initialize()
    decoder, backbone = trainer.optimizer.param_groups
    assert backbone["lr"] == pytest.approx(0.1 * decoder["lr"]) and decoder["weight_decay"] == 0.05
    in_backbone = {id(p) for p in trainer.network.backbone.parameters()}
    assert {id(p) for p in backbone["params"]} == in_backbone
    lora = make_trainer("lora.enabled=true", results="lora")
    lora.initialize()
    assert len(lora.optimizer.param_groups) == 1


# --- the commands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "network",
    [
        pytest.param("m2f", marks=IN_WORKER["m2f"]),
        pytest.param("eomt", marks=[IN_WORKER["eomt"], pytest.mark.nightly]),  # real data are predicted daily
        pytest.param("pmt", marks=[IN_WORKER["pmt"], pytest.mark.nightly]),  # a minute of the same code
    ],
)
def test_commands_from_training_to_import(network: str, request: pytest.FixtureRequest, tmp_path: Path):
    place, name = request.getfixturevalue(f"trained_{network}"), f"{network}_tiny"
    fold = place.results / "Dataset900_DemoFundus" / f"nnUNetTrainer_m2f__nnUNetPlans_{name}__2d" / "fold_0"
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    # nnU-Net's own prediction and evaluation of the validation case give the validation's numbers
    (case,) = [Path(entry["reference_file"]).stem for entry in summary["metric_per_case"]]
    raw = place.raw / "Dataset900_DemoFundus"
    images, truth = tmp_path / "images", tmp_path / "truth"
    images.mkdir(), truth.mkdir()
    for file in (raw / "imagesTr").glob(f"{case}_*"):
        (images / file.name).symlink_to(file)
    (truth / f"{case}.png").symlink_to(raw / "labelsTr" / f"{case}.png")
    model = ("-d", 900, "-tr", "nnUNetTrainer_m2f", "-p", f"nnUNetPlans_{name}", "--save_probabilities")
    place.predict(images, tmp_path / "predicted", *model)
    plans, dataset = tmp_path / "predicted" / "plans.json", tmp_path / "predicted" / "dataset.json"
    place.run("nnUNetv2_evaluate_folder", truth, tmp_path / "predicted", "-djfile", dataset, "-pfile", plans)
    evaluated = json.loads((tmp_path / "predicted" / "summary.json").read_text())
    assert evaluated["foreground_mean"] == pytest.approx(summary["foreground_mean"])
    assert network != "m2f" or summary["foreground_mean"]["Dice"] > 0.1  # it has learned something
    probabilities = np.load(tmp_path / "predicted" / f"{case}.npz")["probabilities"]
    assert np.allclose(probabilities.sum(0), 1, atol=1e-3)
    # on another machine, without configuration and weights
    archive = tmp_path / "model.zip"
    place.run("nnUNetv2_export_model_to_zip", "-d", 900, "-o", archive, "-c", "2d", "-tr", "nnUNetTrainer_m2f",
              "-p", f"nnUNetPlans_{name}", "-f", 0)  # fmt: skip
    elsewhere = place.with_results(f"results_{network}_imported")
    elsewhere.run("nnUNetv2_install_pretrained_model_from_zip", archive)
    elsewhere.predict(images, tmp_path / "again", *model)
    assert np.array_equal(np.load(tmp_path / "again" / f"{case}.npz")["probabilities"], probabilities)
    # and validation again, by name alone
    place.run("nnUNetv2_train_m2f", 900, "2d", 0, "--name", name, "--val", "-device", "cpu")
    assert json.loads((fold / "validation" / "summary.json").read_text())["mean"] == summary["mean"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train.precision=bfloat16"], "train.precision is bfloat16, model.autocast_dtype float32"),
        (["train.gradient_clip=1"], "unknown key train.gradient_clip"),
        (["model.hidden_dim=100"], "model.hidden_dim: Input should be a multiple of 32, found 100"),
        (["model.backbone_out_layers=LAST"], "model.backbone_out_layers: Input should be FOUR_EVEN_INTERVALS"),
        (["model.backbone_out_layers=[0,1,2,9]"], "must be ascending block indices from 0 to 3"),
        (["m2f_train.num_points=0"], "m2f_train.num_points: Input should be greater than 0, found 0"),
        (["model.num_queries=1"], "num_queries must be at least the number of classes (3), found 1"),
        (["-tr", "nnUNetTrainer_vit"], "unknown key m2f_train"),
    ],
)
def test_refusals(refused: Callable[..., str], workplace, arguments: list[str], sentence: str):
    config = ("--m2f_config", workplace.root / "m2f_tiny.yaml", "-device", "cpu")
    assert sentence in refused(workplace, 900, "2d", 0, *config, *arguments, command="nnUNetv2_train_m2f")


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, *sys.argv[1:]]))
