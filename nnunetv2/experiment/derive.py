"""Derive the plans of an experiment from nnU-Net's plans and a configuration; everything automatic is resolved here."""

import functools
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from dinov3.hub.families import TIMM_PREFIX, Statistics, get_family
from nnunetv2.experiment.decoder_options import FACTORY, decoder_keywords
from nnunetv2.experiment.errors import ExperimentError, not_to_be_built
from nnunetv2.experiment.mask_annealing import resolve_annealing
from nnunetv2.experiment.memory import Machine, check_memory
from nnunetv2.experiment.plans import (
    CONFIG_PATH_KEY,
    EXPERIMENT_KEY,
    as_stored,
    check_configuration,
    configurations_2d,
    resolve,
)
from nnunetv2.experiment.pretrained_weights import PretrainedWeights
from nnunetv2.experiment.unet import features_of, unet_architecture
from nnunetv2.model.backbone import timm_statistics, weights_follow
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

# nnU-Net's normalisations whose result lies in [0, 1]
UNIT_RANGE_SCHEMES = ("RGBTo01Normalization", "RescaleTo01Normalization")


def derive_plans(
    plans: dict[str, Any],
    configuration: str,
    dataset_json: dict,
    config: Any,
    name: str,
    config_path: str | None = None,
    machine: Machine | None = None,
    weights: PretrainedWeights | None = None,
) -> dict[str, Any]:
    """Derive the plans of an experiment.

    The preprocessed data stay those of the plans derived from (same `data_identifier`). All 2D configurations are
    derived, the others are left out.

    Args:
        plans: nnU-Net's plans.
        configuration: the configuration that will be trained.
        dataset_json: the data set's `dataset.json`, for the number of classes.
        config: the checked configuration, such as a `ViTnnUNetConfig`.
        name: name of the experiment; the derived plans are called `<plans>_<name>`.
        config_path: where the configuration was read from, to be noted in the plans; None if from no file.
        machine: where the configuration will be trained; None: its memory is not checked.
        weights: the pretrained weights, where the caller goes on with them; by default those of the configuration.

    Returns:
        New plans.

    Raises:
        ExperimentError: the configuration is not a 2D one, the network cannot be built as configured, or its training
            surely needs more memory than there is.
    """
    check_configuration(plans, configuration)
    derived = deepcopy(plans)
    derived.pop("continue_training", None)  # set by nnU-Net for its trainers, no part of the file
    derived["plans_name"] = f"{plans['plans_name']}_{name}"
    if config_path is not None:
        derived[CONFIG_PATH_KEY] = config_path
    regions = PlansManager(plans).get_label_manager(dataset_json).has_regions
    weights = weights or PretrainedWeights(config.model)
    try:
        derived["configurations"] = {
            name: _derive_configuration(resolve(plans, name), config, regions, weights)
            for name in configurations_2d(plans)
        }
    except ValueError as error:
        raise ExperimentError(str(error)) from error
    num_classes = count_classes(derived, dataset_json)
    for key, values in derived["configurations"].items():
        network = build_on_meta(values, num_classes)
        _check_trainer(network, config)
        if machine is not None and key == configuration:
            check_memory(values, network, num_classes, machine)
        _check_forward_pass(values, network, num_classes)
        if config.model is not None:
            keywords = values["architecture"]["arch_kwargs"]
            keywords |= {**getattr(network, "resolved_options", {}), "out_layers": _feature_layers(network)}
            resolve_annealing(values[EXPERIMENT_KEY], network)
    return derived


def count_classes(plans: dict[str, Any], dataset_json: dict) -> int:
    """Number of channels that the network's logits have for a data set."""
    return PlansManager(plans).get_label_manager(dataset_json).num_segmentation_heads


def _derive_configuration(
    base: dict[str, Any], config: Any, regions: bool, weights: PretrainedWeights
) -> dict[str, Any]:
    derived = deepcopy(base)
    for key in ("patch_size", "batch_size"):
        value = getattr(config.train, key)
        derived[key] = derived[key] if value is None else value
    derived[EXPERIMENT_KEY] = as_stored(config)
    if config.model is None:
        derived["architecture"] = unet_architecture(base, derived["patch_size"])
        return derived
    derived["architecture"] = {
        "network_class_name": f"{config.model.model_path}.{FACTORY}",
        "arch_kwargs": architecture_keywords(
            config, base["normalization_schemes"], derived["batch_size"], regions, weights, features_of(base)
        ),
        "_kw_requires_import": [],
    }
    return derived


def architecture_keywords(
    config: Any,
    normalization_schemes: list[str],
    batch_size: int,
    regions: bool = False,
    weights: PretrainedWeights | None = None,
    features_per_stage: list[int] | None = None,
) -> dict[str, Any]:
    """Return the keywords that rebuild the network: no pretrained weights, nothing automatic but the feature layers.

    Args:
        config: the checked configuration.
        normalization_schemes: nnU-Net's normalisation, one per channel.
        batch_size: images per batch.
        regions: whether the data set declares regions.
        weights: the pretrained weights, which decide on the query bias; by default those of the configuration.
        features_per_stage: widths of the U-Net of the plans derived from; None if they describe none.
    """
    model, lora = config.model, config.lora
    return {
        "backbone_name": model.backbone,
        "backbone_size": model.backbone_size,
        "query_bias": (weights or PretrainedWeights(model)).has_query_bias,
        "freeze_backbone": model.freeze_backbone,
        "use_lora": lora.enabled,
        "lora_rank": lora.r,
        "lora_alpha": lora.lora_alpha,
        "lora_dropout": lora.lora_dropout,
        "lora_target_modules": list(lora.target_modules),
        "use_rslora": lora.use_rslora,
        "out_layers": model.out_layers,
        "input_norm": resolve_input_norm(model.input_norm, model.backbone, normalization_schemes),
        "precision": config.train.precision,
        **decoder_keywords(model, batch_size, regions, features_per_stage),
    }


def resolve_input_norm(choice: str, backbone: str, normalization_schemes: list[str]) -> dict[str, list[float]] | None:
    """Decide what the model does to each channel before the backbone.

    Args:
        choice: `auto` (the channels that nnU-Net scales to [0, 1]), `backbone` (all channels) or `none`; after a colon
            the name of the statistics, for backbones that have several.
        backbone: family of the backbone, or `timm:<name>`.
        normalization_schemes: nnU-Net's normalisation, one per channel.

    Returns:
        `{"mean": [...], "std": [...]}`, one number per channel, 0 and 1 for a channel that passes; None if all pass.
    """
    kind, _, which = choice.partition(":")
    chosen = [
        kind == "backbone" or (kind == "auto" and scheme in UNIT_RANGE_SCHEMES) for scheme in normalization_schemes
    ]
    if not any(chosen):
        return None
    statistics = _statistics(backbone, which)
    mean, std = _per_channel(statistics.mean, len(chosen)), _per_channel(statistics.std, len(chosen))
    return {
        "mean": [value if use else 0.0 for value, use in zip(mean, chosen, strict=True)],
        "std": [value if use else 1.0 for value, use in zip(std, chosen, strict=True)],
    }


def _statistics(backbone: str, which: str) -> Statistics:
    if backbone.startswith(TIMM_PREFIX):
        return timm_statistics(backbone.removeprefix(TIMM_PREFIX))
    statistics = get_family(backbone).statistics
    return statistics[which] if which else next(iter(statistics.values()))


def _per_channel(rgb: tuple[float, float, float], channels: int) -> list[float]:
    """Red, green, blue in turn, as timm repeats the weights of the patch embedding; their mean for one channel."""
    return [sum(rgb) / 3] if channels == 1 else [rgb[i % 3] for i in range(channels)]


def build_on_meta(configuration: dict[str, Any], num_classes: int) -> nn.Module:
    """Build the network of a derived configuration without memory for its weights.

    Raises:
        ExperimentError: it cannot be built.
    """
    architecture = configuration["architecture"]
    channels = len(configuration["normalization_schemes"])
    try:
        with torch.device("meta"), weights_follow():
            return get_network_from_plans(
                architecture["network_class_name"],
                architecture["arch_kwargs"],
                architecture.get("_kw_requires_import", ()),
                channels,
                num_classes,
                allow_init=False,
                deep_supervision=False,
            ).to("meta")
    except Exception as error:  # a user's own decoder can raise anything
        raise not_to_be_built(error) from error


def _check_trainer(network: nn.Module, config: Any) -> None:
    """Check that a trainer of ours trains what the network returns in training; it shows only now for a user's own.

    Raises:
        ExperimentError: it is queries for the loss of dense logits, or the other way round.
    """
    returned, trained = hasattr(network, "forward_queries"), hasattr(config, "m2f_train")
    if returned != trained and config.trainer in config.TRAINERS:
        kinds = {True: "queries", False: "dense logits"}
        raise ExperimentError(
            f"model.model_path: the network of {config.model.model_path} returns {kinds[returned]} in training, "
            f"{config.trainer} trains {kinds[trained]}; set trainer to nnUNetTrainer_{'m2f' if returned else 'vit'}"
        )


def _check_forward_pass(configuration: dict[str, Any], network: nn.Module, num_classes: int) -> None:
    """Run the network without memory, so that nothing impossible is written."""
    smallest = getattr(network, "patch_size", 1)
    if min(configuration["patch_size"]) < smallest:
        raise ExperimentError(
            f"train.patch_size must be at least one ViT patch ({smallest} × {smallest}), found "
            f"{configuration['patch_size']}"
        )
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.register_forward_pre_hook(functools.partial(_check_batch_norm, configuration))
    try:
        with torch.no_grad():
            channels = len(configuration["normalization_schemes"])
            images = torch.empty(configuration["batch_size"], channels, *configuration["patch_size"], device="meta")
            outputs = _logits_of_both_modes(network, images)
    except Exception as error:  # a user's own decoder can raise anything
        raise not_to_be_built(error) from error
    factory = configuration["architecture"]["network_class_name"]
    expected = (configuration["batch_size"], num_classes, *configuration["patch_size"])
    for logits in outputs:
        if logits.shape != expected:
            raise ExperimentError(
                f"the network of {factory} gives logits of shape {tuple(logits.shape)}, expected {expected}"
            )


def _feature_layers(network: nn.Module) -> list[int]:
    """The blocks whose outputs the decoder gets."""
    try:
        return list(network.feature_indices)
    except Exception as error:  # of a user's own decoder
        raise not_to_be_built(error) from error


def _logits_of_both_modes(network: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """A mask transformer runs once: its logits are computed from the queries that it returns in training."""
    network.train()
    if hasattr(network, "forward_queries"):
        return [network.dense_logits(network(images), images.shape[-2:])]
    return [network(images), network.eval()(images)]


def _check_batch_norm(configuration: dict[str, Any], module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Check that batch norm gets more than one value per channel: PyTorch's own message names no option."""
    shape = inputs[0].shape
    if module.training and shape.numel() == shape[1]:
        raise ValueError(
            "a batch norm of the decoder gets a single value per channel in training, with train.batch_size="
            f"{configuration['batch_size']} and train.patch_size={list(configuration['patch_size'])}: raise one of "
            "them, or choose a decoder, or its option, without batch norm"
        )
