"""The architecture of a U-Net experiment: that of the plans, with the stages that suit its patch size."""

from copy import deepcopy
from typing import Any

from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

# As nnU-Net's planners have them for 2D: the least side of a feature map, and the most channels
MIN_FEATURE_MAP_SIDE, MAX_FEATURES = 4, 512
NO_LIMIT = 999_999
MIN_STAGES = 3  # with fewer, deep supervision has no resolution to weight
# What stands in the keywords of the network once per stage of the encoder or of the decoder
PER_STAGE = ("n_conv_per_stage", "n_blocks_per_stage", "n_conv_per_stage_decoder")


def features_of(base: dict[str, Any]) -> list[int] | None:
    """Widths of the stages of the U-Net that a configuration of plans describes; None if it describes none."""
    architecture = base.get("architecture")
    keywords = architecture.get("arch_kwargs", {}) if isinstance(architecture, dict) else {}
    features = keywords.get("features_per_stage")
    return list(features) if isinstance(features, (list, tuple)) else None


def unet_architecture(base: dict[str, Any], patch_size: list[int]) -> dict[str, Any]:
    """Return the architecture at a patch size.

    It is that of the plans, unless the patch size is another than theirs: then nnU-Net's rules for the patch size
    decide on the number of stages, their strides and kernels (Isensee et al., nnU-Net, 2021).

    Args:
        base: a configuration of the plans derived from, with all that it inherits.
        patch_size: height and width in pixels.

    Raises:
        ExperimentError: the network of the plans is no U-Net, or the patch size does not suit one.
    """
    architecture = deepcopy(base.get("architecture"))
    keywords = architecture.get("arch_kwargs", {}) if isinstance(architecture, dict) else {}
    if not {"n_stages", "strides", "kernel_sizes", "features_per_stage", "n_conv_per_stage_decoder"} <= keywords.keys():
        name = architecture.get("network_class_name") if isinstance(architecture, dict) else None
        raise ExperimentError(
            f"the plans describe no U-Net (architecture.network_class_name is {name!r}): pass with -p those of a "
            "planner of nnU-Net 2.4 or later, such as nnUNetPlans or nnUNetResEncUNetMPlans"
        )
    if list(patch_size) != list(base["patch_size"]):
        keywords.update(_stages(keywords, base["spacing"], patch_size))
    return architecture


def _stages(keywords: dict[str, Any], spacing: list[float], patch_size: list[int]) -> dict[str, Any]:
    """The keywords that depend on the patch size."""
    _, strides, kernels, padded, _ = get_pool_and_conv_props(spacing, patch_size, MIN_FEATURE_MAP_SIDE, NO_LIMIT)
    if len(strides) < MIN_STAGES:
        smallest = MIN_FEATURE_MAP_SIDE * 2 ** (MIN_STAGES - 1)
        raise ExperimentError(
            f"train.patch_size is too small for a U-Net: at least {smallest} × {smallest}, found {list(patch_size)}"
        )
    allowed = [int(side) for side in padded]
    if allowed != list(patch_size):
        raise ExperimentError(
            f"train.patch_size must be divisible by the U-Net's strides: the next larger one is {allowed}, found "
            f"{list(patch_size)}"
        )
    stages = {"n_stages": len(strides), "strides": _as_lists(strides), "kernel_sizes": _as_lists(kernels)}
    stages["features_per_stage"] = _features(keywords["features_per_stage"], len(strides))
    for key in PER_STAGE:
        if isinstance(keywords.get(key), (list, tuple)):
            length = len(strides) - key.endswith("decoder")
            stages[key] = [*keywords[key][:length], *[keywords[key][-1]] * (length - len(keywords[key]))]
    return stages


def _features(planned: list[int], stages: int) -> list[int]:
    """The channels of the stages: twice as many in each, up to a limit, which the plans may have reached."""
    limit = planned[-1] if planned[-2:-1] == planned[-1:] else max(planned[-1], MAX_FEATURES)
    features = list(planned[:stages])
    while len(features) < stages:
        features.append(min(2 * features[-1], limit))
    return features


def _as_lists(sizes: tuple[tuple[int, ...], ...]) -> list[list[int]]:
    return [list(size) for size in sizes]
