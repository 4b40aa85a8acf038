"""The plain U-Net as an experiment: its configuration, and its architecture at the patch size of the experiment."""

import copy
from pathlib import Path

import pytest
import torch
from example_plans import CONFIGURATION, DATASET_JSON, PLANS
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nnunetv2.experiment.derive import build_on_meta, derive_plans
from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.experiment.plans import differences_from, restore
from nnunetv2.experiment.schema import load_config
from nnunetv2.experiment.unet import unet_architecture
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.model.model_upernet import create_segmentation_model
from nnunetv2.model.parameter_counts import count_parameters_per_part
from nnunetv2.training.nnUNetTrainer.unet_config import UNetConfig
from nnunetv2.training.nnUNetTrainer.vit_config import ViTnnUNetConfig
from nnunetv2.training.vit.cost import add_validation, configuration_hash, count_flops, read_cost


def architecture(kind: str, side: int) -> dict:
    """What nnU-Net's planner writes for a patch size, with 2 or 4 times fewer channels."""
    _, strides, kernels, _, _ = get_pool_and_conv_props([1.0, 1.0], [side, side], 4, 999)
    stages = len(strides)
    blocks = {
        "PlainConvUNet": {"n_conv_per_stage": [2] * stages, "n_conv_per_stage_decoder": [2] * (stages - 1)},
        "ResidualEncoderUNet": {
            "n_blocks_per_stage": [1, 3, 4, 6, 6, 6, 6, 6][:stages],
            "n_conv_per_stage_decoder": [1] * (stages - 1),
        },
    }
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{kind}",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [min(512, 32 * 2**i) for i in range(stages)],
            "conv_op": "torch.nn.modules.conv.Conv2d",
            "kernel_sizes": [list(size) for size in kernels],
            "strides": [list(size) for size in strides],
            **blocks[kind],
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def plans_of(kind: str = "PlainConvUNet", side: int = 64) -> dict:
    plans = copy.deepcopy(PLANS)
    content = {"architecture": architecture(kind, side), "patch_size": [side, side], "spacing": [1.0, 1.0]}
    plans["configurations"]["2d"] = {**CONFIGURATION, **content}
    return plans


def derive(plans: dict, *overrides: str) -> dict:
    config = load_config(UNetConfig, "unet", overrides)
    return derive_plans(plans, "2d", DATASET_JSON, config, "unet")["configurations"]["2d"]


KINDS = ["PlainConvUNet", "ResidualEncoderUNet"]


def test_the_packaged_configuration_has_nnunets_own_values():
    assert load_config(UNetConfig, "unet") == UNetConfig(
        train=type(UNetConfig().train)(
            initial_lr=0.01,
            weight_decay=0.00003,
            gradient_clip=12,
            num_epochs=1000,
            num_iterations_per_epoch=250,
            num_val_iterations_per_epoch=50,
        )
    )
    keys = set(vars(ViTnnUNetConfig().train)) - set(vars(UNetConfig().train))
    of_warmup = {"backbone_warmup_epochs", "backbone_warmup_fraction"}
    assert keys == {"layer_decay", "backbone_lr_factor", *of_warmup}


@pytest.mark.parametrize("kind", KINDS)
def test_the_architecture_of_the_plans_is_left_as_it_is(kind: str):
    plans = plans_of(kind)
    before = copy.deepcopy(plans)
    derived = derive(plans, "train.batch_size=3", "train.seed=1")
    assert derived["architecture"] == before["configurations"]["2d"]["architecture"] and plans == before
    assert (derived["batch_size"], derived["patch_size"]) == (3, [64, 64])
    assert set(derived["vit"]) == {"trainer", "train"} and derived["vit"]["trainer"] == "nnUNetTrainer_unet"
    assert restore(UNetConfig, derived) == load_config(UNetConfig, "unet", ["train.batch_size=3", "train.seed=1"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("planned", "side"), [(512, 64), (64, 512), (128, 224), (128, 128)])
def test_at_another_patch_size_it_is_the_one_that_is_planned_for_it(kind: str, planned: int, side: int):
    base = plans_of(kind, planned)["configurations"]["2d"]
    assert unet_architecture(base, [side, side]) == architecture(kind, side)


def test_a_limit_of_the_channels_that_the_plans_have_reached_is_kept():
    base = plans_of(side=64)["configurations"]["2d"]
    base["architecture"]["arch_kwargs"]["features_per_stage"] = [8, 16, 24, 24, 24]
    assert unet_architecture(base, [256, 256])["arch_kwargs"]["features_per_stage"] == [8, 16, 24, 24, 24, 24, 24]


@pytest.mark.parametrize(
    ("size", "told"),
    [
        ("[336,256]", "must be divisible by the U-Net's strides: the next larger one is [384, 256], found [336, 256]"),
        ("[8,8]", "is too small for a U-Net: at least 16 × 16, found [8, 8]"),
    ],
)
def test_a_patch_size_that_suits_no_unet_is_told(size: str, told: str):
    with pytest.raises(ExperimentError) as caught:
        derive(plans_of(), f"train.patch_size={size}")
    assert str(caught.value) == f"train.patch_size {told}"


@pytest.mark.parametrize("network", [{}, {"network_class_name": "a.Primus", "arch_kwargs": {"embed_dim": 3}}])
def test_plans_without_a_unet_are_told(network: dict):
    plans = plans_of()
    plans["configurations"]["2d"]["architecture"] = network
    with pytest.raises(ExperimentError, match="the plans describe no U-Net"):
        derive(plans)


def test_another_configuration_is_told_apart():
    plans = derive_plans(plans_of(), "2d", DATASET_JSON, load_config(UNetConfig, "unet"), "unet")
    assert not list(differences_from(plans, "2d", DATASET_JSON, load_config(UNetConfig, "unet")))
    other = load_config(UNetConfig, "unet", ["train.num_training_cases=4"])
    assert list(differences_from(plans, "2d", DATASET_JSON, other)) == ["train.num_training_cases: None → 4"]
    # an experiment of before these keys: all cases
    del plans["configurations"]["2d"]["vit"]["train"]["num_training_cases"]
    del plans["configurations"]["2d"]["vit"]["train"]["training_groups"]
    assert not list(differences_from(plans, "2d", DATASET_JSON, load_config(UNetConfig, "unet")))


@pytest.mark.parametrize("override", ["model.backbone=dinov2", "lora.enabled=true", "train.layer_decay=0.5"])
def test_what_a_backbone_has_is_unknown(override: str):
    with pytest.raises(ExperimentError, match=r"unknown key (model|lora|train\.layer_decay) .*; allowed: "):
        load_config(UNetConfig, "unet", [override])


def test_shared_parameters_are_counted_once():
    network = build_on_meta(derive(plans_of()), 2)
    parts = count_parameters_per_part(network)
    assert (
        parts["encoder"][0] + parts["decoder"][0] == parts["total"][0] == sum(p.numel() for p in network.parameters())
    )


def test_flops_and_hash_are_those_of_the_experiment():
    small, large = derive(plans_of()), derive(plans_of(), "train.patch_size=[128,128]")
    (flops, reason), (more, _) = count_flops(small, 2), count_flops(large, 2)
    assert reason is None and 4 * flops < more < 5 * flops  # four times the pixels, and one stage more
    assert configuration_hash(small) == configuration_hash(copy.deepcopy(small)) != configuration_hash(large)
    assert configuration_hash({**small, "vit": {**small["vit"], "trainer": "other"}}) != configuration_hash(small)
    assert len(configuration_hash(small)) == 40
    small["architecture"]["arch_kwargs"]["n_stages"] = 2
    flops, reason = count_flops(small, 2)
    assert flops is None and "n_conv_per_stage" in reason


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"epochs": 3}'])
def test_a_damaged_file_of_costs_counts_as_none(content: str, tmp_path: Path):
    assert read_cost(tmp_path) == {}
    (tmp_path / "cost.json").write_text(content)
    assert read_cost(tmp_path) == {}
    add_validation(tmp_path, 3.0)
    assert (tmp_path / "cost.json").read_text() == content


def test_the_flops_are_counted_as_on_a_real_device():
    options = {"backbone_size": "tiny", "hidden_size": 32}
    plans = {
        "architecture": {
            "network_class_name": "nnunetv2.model.model_upernet.create_segmentation_model",
            "arch_kwargs": options,
        },
        "normalization_schemes": ["ZScoreNormalization"] * 3,
        "patch_size": [64, 96],
    }
    network = create_segmentation_model(num_classes=2, **options).eval()
    # PyTorch does not count its fused attention for CPUs
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 64, 96))
    assert count_flops(plans, 2) == (counter.get_total_flops(), None)
