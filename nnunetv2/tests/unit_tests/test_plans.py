"""Derived plans: what they hold, what stays, and that no plans file is ever overwritten."""

import functools
import json
from pathlib import Path

import pytest
import torch

from dinov3.hub.families import IMAGENET, VISIONFM_MODALITIES
from nnunetv2.experiment.derive import architecture_keywords, derive_plans, resolve_input_norm
from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.experiment.plans import (
    check_experiment,
    check_name,
    check_results,
    differences_from,
    read_plans,
    restore,
    write_new_plans,
)
from nnunetv2.experiment.schema import build
from nnunetv2.model.backbone import create_backbone
from nnunetv2.training.nnUNetTrainer.m2f_config import M2FnnUNetConfig
from nnunetv2.training.nnUNetTrainer.vit_config import ViTnnUNetConfig
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

DATASET_JSON = {"labels": {"background": 0, "artery": 1, "vein": 2}, "channel_names": {"0": "x"}, "file_ending": ".png"}
RGB = ["RGBTo01Normalization"] * 3
CONFIGURATION = {
    "data_identifier": "nnUNetPlans_2d",
    "batch_size": 12,
    "patch_size": [64, 80],
    "normalization_schemes": RGB,
    "architecture": {"network_class_name": "a.UNet", "arch_kwargs": {"n_stages": 5}, "_kw_requires_import": ["x"]},
}


def base_plans() -> dict:
    return {
        "dataset_name": "Dataset001_Test",
        "plans_name": "nnUNetPlans",
        "label_manager": "LabelManager",
        "configurations": {
            "2d": CONFIGURATION,
            "2d_small": {"inherits_from": "2d", "batch_size": 3},
            "3d_fullres": {"patch_size": [8, 64, 64], "normalization_schemes": RGB},
        },
    }


def config(**train: object) -> ViTnnUNetConfig:
    values = {
        "model": {"backbone_size": "tiny", "pretrained": False, "decoder": {"hidden_size": 32}},
        "train": train,
    }
    return build(ViTnnUNetConfig, values, "test")


@functools.cache
def derived_text(**train: object) -> str:
    """A derivation runs the network, which takes a second without memory too."""
    return json.dumps(derive_plans(base_plans(), "2d", DATASET_JSON, config(**train), "mine"))


def derive(**train: object) -> dict:
    return json.loads(derived_text(**train))


@pytest.mark.integration
def test_a_plans_file_rebuilds_the_network_and_its_training():
    plans = json.loads(json.dumps(derive(num_epochs=7)))
    configuration = PlansManager(plans).get_configuration("2d")
    network = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        3,
        3,
        deep_supervision=False,
    )
    assert network(torch.rand(1, 3, 32, 32)).shape == (1, 3, 32, 32)
    assert network.feature_indices == [0, 1, 2, 3]
    restored, given = restore(ViTnnUNetConfig, configuration.configuration), config(num_epochs=7)
    assert restored.model.decoder == {**DEFAULTS, **given.model.decoder}
    given.model.decoder = restored.model.decoder
    assert restored == given


DEFAULTS = {"hidden_size": 512, "pool_scales": [1, 2, 3, 6], "use_progressive_upsample": True, "decoder_dropout": 0.1}


@pytest.mark.integration
def test_every_option_of_the_decoder_is_in_the_plans_once_so_that_no_later_default_counts():
    configuration = derive()["configurations"]["2d"]
    keywords = configuration["architecture"]["arch_kwargs"]
    assert {key: keywords[key] for key in DEFAULTS} == {**DEFAULTS, "hidden_size": 32}
    assert "decoder" not in configuration["vit"]["model"] and not DEFAULTS.keys() & configuration["vit"]["model"].keys()


@pytest.mark.parametrize(
    ("decoder", "differences"),
    [
        ({"hidden_size": 32}, []),
        ({"hidden_size": 32, "decoder_dropout": 0.1}, []),  # the default, said
        ({"hidden_size": 64, "pool_scales": [1]}, ["hidden_size: 32 → 64", "pool_scales: [1, 2, 3, 6] → [1]"]),
        ({}, ["hidden_size: 32 → 512"]),
    ],
)
def test_options_of_a_decoder_are_compared_with_those_that_trained(decoder: dict, differences: list[str]):
    now = config()
    now.model.decoder = decoder
    assert list(differences_from(derive(), "2d", DATASET_JSON, now)) == [f"model.decoder.{d}" for d in differences]


def test_what_is_automatic_of_a_decoder_is_compared_as_it_was_decided():
    model = {"backbone_size": "tiny", "pretrained": False, "model_path": "nnunetv2.model.model_dpt"}
    option = "use_batch_norm_in_fusion_residual"
    auto, off = (
        build(ViTnnUNetConfig, {"model": {**model, "decoder": {option: value}}}, "test") for value in ("auto", False)
    )
    plans = derive_plans(base_plans(), "2d", DATASET_JSON, auto, "mine")
    assert list(differences_from(plans, "2d", DATASET_JSON, auto)) == []
    assert list(differences_from(plans, "2d", DATASET_JSON, off)) == [f"model.decoder.{option}: True → False"]


@pytest.mark.parametrize(("network", "option", "decided"), [("eomt", "num_blocks", 1), ("pmt", "mlp_dim", 96)])
def test_what_the_network_decides_stands_in_the_plans(network: str, option: str, decided: int):
    model = {"backbone_size": "tiny", "pretrained": False, "model_path": f"nnunetv2.model.model_{network}"}
    auto, same, other = (
        build(M2FnnUNetConfig.schema_for({"model": model}), {"model": {**model, "decoder": {option: value}}}, "test")
        for value in ("auto", decided, 2)
    )
    plans = derive_plans(base_plans(), "2d", DATASET_JSON, auto, "mine")
    assert plans["configurations"]["2d"]["architecture"]["arch_kwargs"][option] == decided
    assert not [*differences_from(plans, "2d", DATASET_JSON, auto), *differences_from(plans, "2d", DATASET_JSON, same)]
    assert list(differences_from(plans, "2d", DATASET_JSON, other)) == [f"model.decoder.{option}: {decided} → 2"]


def dino_unet(widths: object) -> ViTnnUNetConfig:
    decoder = {"features_per_stage": widths, "rank": 8}
    model = {"backbone_size": "tiny", "pretrained": False, "model_path": "nnunetv2.model.model_dinounet"}
    return build(ViTnnUNetConfig, {"model": {**model, "decoder": decoder}}, "test")


def test_a_decoder_takes_its_widths_from_the_plans_derived_from():
    plans = base_plans()
    plans["configurations"] = {"2d": {**CONFIGURATION, "batch_size": 2}}
    with pytest.raises(ExperimentError, match="the plans derived from describe no U-Net of at least 4 stages"):
        derive_plans(plans, "2d", DATASET_JSON, dino_unet("plans"), "mine")
    unet = {**CONFIGURATION["architecture"], "arch_kwargs": {"features_per_stage": [8, 16, 16, 24, 24]}}
    plans["configurations"]["2d"]["architecture"] = unet
    derived = derive_plans(plans, "2d", DATASET_JSON, dino_unet("plans"), "mine")
    keywords = derived["configurations"]["2d"]["architecture"]["arch_kwargs"]
    assert keywords["features_per_stage"] == [8, 16, 16, 24]
    assert not list(differences_from(derived, "2d", DATASET_JSON, dino_unet("plans")))
    (difference,) = differences_from(derived, "2d", DATASET_JSON, dino_unet([8, 8, 8, 8]))
    assert difference.startswith("model.decoder.features_per_stage")


def test_plans_that_were_changed_by_hand_are_told():
    configuration = derive()["configurations"]["2d"]
    configuration["vit"]["train"]["num_epochs"] = 0
    with pytest.raises(ExperimentError, match=r"train\.num_epochs: .*greater than 0, found 0"):
        restore(ViTnnUNetConfig, configuration)


@pytest.mark.parametrize("damage", ["vit", "trainer", "architecture", "arch_kwargs"])
def test_damaged_plans_of_an_experiment_are_told(damage: str):
    plans = derive()
    check_experiment(plans, "2d")
    configuration = plans["configurations"]["2d"]
    place = {"vit": configuration, "trainer": configuration["vit"], "architecture": configuration}
    place.get(damage, configuration["architecture"])[damage] = 5
    with pytest.raises(ExperimentError, match=r"changed by hand: configuration '2d' must have vit\.trainer"):
        check_experiment(plans, "2d")


REGIONS = {
    **DATASET_JSON,
    "labels": {"background": 0, "vessel": [1, 2], "artery": 1},
    "regions_class_order": [2, 1],
}


@pytest.mark.integration
@pytest.mark.parametrize(("dataset_json", "heads", "regions"), [(DATASET_JSON, 3, False), (REGIONS, 2, True)])
def test_mask2former_is_rebuilt_for_labels_or_for_regions(dataset_json: dict, heads: int, regions: bool):
    model = {"backbone_size": "tiny", "pretrained": False, "hidden_dim": 32, "num_queries": 4}
    tiny = build(M2FnnUNetConfig, {"model": model, "lora": {"enabled": False}}, "test")
    plans = json.loads(json.dumps(derive_plans(base_plans(), "2d", dataset_json, tiny, "mine")))
    configuration = PlansManager(plans).get_configuration("2d")
    network = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        input_channels=3,
        output_channels=heads,
        deep_supervision=False,
    ).eval()
    with torch.no_grad():
        logits = network(torch.rand(1, 3, 64, 64))
    # of labels the logits are normalised: exactly one is true; regions may overlap
    normalised = torch.allclose(logits.exp().sum(1), torch.ones(64, 64), atol=1e-5)
    assert logits.shape == (1, heads, 64, 64) and normalised != regions


def test_architecture_holds_what_rebuilds_the_network_and_no_weights():
    architecture = derive()["configurations"]["2d"]["architecture"]
    assert architecture["network_class_name"] == "nnunetv2.model.model_upernet.create_segmentation_model"
    assert architecture["_kw_requires_import"] == []
    assert not {"pretrained", "checkpoint_path"} & architecture["arch_kwargs"].keys()
    assert architecture["arch_kwargs"]["out_layers"] == [0, 1, 2, 3]
    assert architecture["arch_kwargs"]["hidden_size"] == 32


def test_names_and_data_of_the_derived_plans():
    base = base_plans()
    plans = derive_plans(base, "2d", DATASET_JSON, config(), "mine")
    assert base == base_plans() and plans["plans_name"] == "nnUNetPlans_mine"
    assert set(plans["configurations"]) == {"2d", "2d_small"}
    small = plans["configurations"]["2d_small"]
    assert small["data_identifier"] == "nnUNetPlans_2d" and small["batch_size"] == 3 and "inherits_from" not in small
    assert plans["configurations"]["2d"]["patch_size"] == [64, 80]


def test_patch_and_batch_of_the_config_replace_those_of_the_plans():
    other = config(patch_size=[96, 48], batch_size=5)
    plans = derive_plans(base_plans(), "2d", DATASET_JSON, other, "mine")
    for name in ("2d", "2d_small"):
        assert plans["configurations"][name]["patch_size"] == [96, 48]
        assert plans["configurations"][name]["batch_size"] == 5


@pytest.mark.parametrize(
    ("name", "told"),
    [("3d_fullres", "is not a 2D configuration.*allowed: 2d, 2d_small"), ("2d_x", "does not exist.*allowed: 2d")],
)
def test_other_than_2d_configurations_are_refused(name: str, told: str):
    with pytest.raises(ExperimentError, match=told):
        derive_plans(base_plans(), name, DATASET_JSON, config(), "mine")


def test_a_network_that_builds_but_cannot_run_is_refused(tmp_path: Path, monkeypatch):
    (tmp_path / "unrunnable_decoder.py").write_text(
        "from nnunetv2.model.model_upernet import UperNetSegmentationModel\n"
        "class create_segmentation_model(UperNetSegmentationModel):\n"
        "    def decode(self, features, output_size):\n"
        "        return features[4]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    broken = config()
    broken.model.model_path = "unrunnable_decoder"
    with pytest.raises(ExperimentError, match="cannot be built as configured: IndexError"):
        derive_plans(base_plans(), "2d", DATASET_JSON, broken, "mine")


def test_a_decoder_that_forgets_the_size_of_the_image_is_refused(tmp_path: Path, monkeypatch):
    (tmp_path / "small_decoder.py").write_text(
        "from nnunetv2.model.model_upernet import UperNetSegmentationModel\n"
        "class Small(UperNetSegmentationModel):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x)[..., ::2, ::2]\n"
        "def create_segmentation_model(num_classes, hidden_size=32, **backbone_options):\n"
        "    return Small(num_classes=num_classes, hidden_size=hidden_size, **backbone_options)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    forgetful = config()
    forgetful.model.model_path = "small_decoder"
    with pytest.raises(ExperimentError, match=r"logits of shape \(12, 3, 32, 40\), expected \(12, 3, 64, 80\)"):
        derive_plans(base_plans(), "2d", DATASET_JSON, forgetful, "mine")


def test_a_network_that_cannot_be_built_is_refused():
    broken = config()
    broken.lora.enabled, broken.lora.target_modules = True, ["query"]
    with pytest.raises(ExperimentError, match="cannot be built as configured: LoRA targets"):
        derive_plans(base_plans(), "2d", DATASET_JSON, broken, "mine")


def test_query_bias_is_chosen_by_what_the_file_holds(tmp_path: Path):
    for bias in (False, True):
        source, _, _ = create_backbone("dinov3", "tiny", query_bias=bias)
        if bias:
            torch.nn.init.ones_(source.blocks[0].attn.q_bias)
        path = tmp_path / f"{bias}.pth"
        torch.save(source.state_dict(), path)
        experiment = config()
        experiment.model.checkpoint_path = str(path)
        assert architecture_keywords(experiment, RGB, 2)["query_bias"] == bias


# --- input normalisation ------------------------------------------------------------------------------------------

Z = "ZScoreNormalization"


@pytest.mark.parametrize(
    ("choice", "schemes", "mean", "std"),
    [
        ("auto", RGB, list(IMAGENET.mean), list(IMAGENET.std)),
        ("auto", [*RGB, Z], [*IMAGENET.mean, 0.0], [*IMAGENET.std, 1.0]),
        ("auto", ["RescaleTo01Normalization"], [sum(IMAGENET.mean) / 3], [sum(IMAGENET.std) / 3]),
        ("backbone", [Z, Z], list(IMAGENET.mean[:2]), list(IMAGENET.std[:2])),
    ],
)
def test_input_norm_is_resolved_per_channel(choice: str, schemes: list[str], mean: list[float], std: list[float]):
    norm = resolve_input_norm(choice, "dinov3", schemes)
    assert norm["mean"] == pytest.approx(mean) and norm["std"] == pytest.approx(std)


@pytest.mark.parametrize(("choice", "schemes"), [("none", RGB), ("auto", [Z, Z, Z]), ("auto", ["CTNormalization"])])
def test_channels_pass_where_nothing_is_to_be_done(choice: str, schemes: list[str]):
    assert resolve_input_norm(choice, "dinov3", schemes) is None


def test_visionfm_has_statistics_per_modality():
    assert resolve_input_norm("auto", "visionfm", RGB)["mean"] == list(VISIONFM_MODALITIES["fundus"].mean)
    assert resolve_input_norm("auto:oct", "visionfm", RGB)["mean"] == list(VISIONFM_MODALITIES["oct"].mean)


def test_any_timm_vit_brings_its_statistics():
    assert resolve_input_norm("auto", "timm:vit_base_patch16_224.augreg_in21k", RGB)["mean"] == [0.5, 0.5, 0.5]


# --- the plans file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "a/b", "a__b", "..\\x", " x", "_a", "a_", "..", "a*b", "a" * 101])
def test_names_that_would_break_folders(name: str):
    with pytest.raises(ExperimentError, match="experiment name"):
        check_name(name)


def test_the_same_experiment_may_be_written_again_another_may_not(tmp_path: Path):
    path = write_new_plans(tmp_path, derive(num_epochs=7))
    before = path.read_bytes()
    assert path.name == "nnUNetPlans_mine.json" and write_new_plans(tmp_path, derive(num_epochs=7)) == path
    with pytest.raises(ExperimentError, match=r"(?s)vit\.train\.num_epochs: 7 → 8.*--name"):
        write_new_plans(tmp_path, derive(num_epochs=8))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_half_a_plans_file_in_the_results_is_as_none_but_never_replaced_beside_the_data(tmp_path: Path, share: float):
    whole = json.dumps(derive())
    for name in ("plans", "nnUNetPlans_mine"):
        (tmp_path / f"{name}.json").write_text(whole[: int(share * len(whole))])
    check_results(tmp_path, derive())
    with pytest.raises(ExperimentError, match=r"nnUNetPlans_mine\.json is not a valid JSON file"):
        write_new_plans(tmp_path, derive())


def test_results_belong_to_one_experiment(tmp_path: Path):
    check_results(tmp_path, derive())
    (tmp_path / "plans.json").write_text(json.dumps(derive()))
    check_results(tmp_path, derive())
    with pytest.raises(ExperimentError, match=r"(?s)plans\.json holds another.*num_epochs: None → 8.*--name"):
        check_results(tmp_path, derive(num_epochs=8))


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch):
    def full(path: Path, *_args: object, **_kwargs: object) -> None:
        path.write_bytes(b"half of the plans")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ExperimentError, match="cannot write the plans .*No space left"):
        write_new_plans(tmp_path, derive())
    assert list(tmp_path.iterdir()) == []


def test_other_json_files_are_no_plans(tmp_path: Path):
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(ExperimentError, match=r"dataset\.json does not hold plans"):
        read_plans(tmp_path, "dataset")


def test_missing_plans_list_those_that_exist(tmp_path: Path):
    write_new_plans(tmp_path, derive())
    with pytest.raises(ExperimentError, match="'nnUNetPlan' not found.*existing: nnUNetPlans_mine"):
        read_plans(tmp_path, "nnUNetPlan")
