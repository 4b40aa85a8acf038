"""The table of backbone families: timm names, patch sizes, normalisation, origin and licence of the weights.

Nothing heavy is imported here, so that a configuration is checked before torch is.
"""

from dataclasses import dataclass, field
from typing import Any

from dinov3.errors import did_you_mean
from dinov3.hub.architectures import ARCHITECTURES

TINY = "tiny"
TIMM_PREFIX = "timm:"


@dataclass(frozen=True)
class Statistics:
    """Per-channel mean and standard deviation of RGB images in [0, 1] that a backbone was pretrained with."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

NO_WEIGHTS_REMEDY = "set model.checkpoint_path to a local file, or model.pretrained=false for random weights"

# Means and standard deviations per modality, as VisionFM's own code gives them (rounded to four decimals).
VISIONFM_MODALITIES = {
    "fundus": Statistics((0.4237, 0.2609, 0.1284), (0.2948, 0.2017, 0.1367)),
    "oct": Statistics((0.2109, 0.2109, 0.2109), (0.1760, 0.1760, 0.1760)),
    "ffa": Statistics((0.2020, 0.2021, 0.2020), (0.1741, 0.1740, 0.1740)),
    "mri": Statistics((0.1737, 0.1737, 0.1737), (0.1620, 0.1620, 0.1620)),
    "ubm": Statistics((0.0961, 0.0961, 0.0961), (0.2098, 0.2098, 0.2098)),
    "ultrasound": Statistics((0.0599, 0.0598, 0.0567), (0.1543, 0.1550, 0.1446)),
    "external": Statistics((0.4936, 0.3632, 0.2596), (0.3200, 0.2711, 0.2199)),
    "slitlamp": Statistics((0.5557, 0.4029, 0.3886), (0.2652, 0.2331, 0.2390)),
}


@dataclass(frozen=True)
class BackboneFamily:
    """One row of the table.

    Attributes:
        timm_names: size to timm's model name; the part after the dot names timm's hub copy of the weights.
        patch_size: side of a patch in pixels.
        statistics: name of the pretraining data to its mean and std; the first entry is the default.
        weights: where the weights come from, for people.
        licence: licence of the weights.
        on_hub: whether timm's hub holds a copy of these weights; otherwise `model.checkpoint_path` is needed.
        tiny: keyword arguments that shrink the smallest member to `tiny`, for tests and demonstrations.
    """

    timm_names: dict[str, str]
    patch_size: int
    weights: str
    licence: str
    on_hub: bool
    statistics: dict[str, Statistics] = field(default_factory=lambda: {"imagenet": IMAGENET})
    tiny: dict[str, Any] = field(default_factory=lambda: {"embed_dim": 96, "depth": 4, "num_heads": 3})

    @property
    def sizes(self) -> list[str]:
        """The sizes that can be asked for, `tiny` first."""
        return [TINY, *self.timm_names]


# A LayerScale of 1 instead of 1e-5: a tiny network starts from random weights and has to learn from the first step.
TINY_WITH_LAYER_SCALE = {"embed_dim": 96, "depth": 4, "num_heads": 3, "init_values": 1.0}

FAMILIES: dict[str, BackboneFamily] = {
    "dinov3": BackboneFamily(
        timm_names={vit.size: f"{vit.timm_name}.lvd1689m" for vit in ARCHITECTURES.values() if vit.timm_name},
        patch_size=16,
        weights="timm's hub copies; files of Meta, Hugging Face and MedDINOv3",
        licence="DINOv3 License",
        on_hub=True,
        tiny=TINY_WITH_LAYER_SCALE,
    ),
    "dinov2": BackboneFamily(
        timm_names={
            "small": "vit_small_patch14_dinov2.lvd142m",
            "base": "vit_base_patch14_dinov2.lvd142m",
            "large": "vit_large_patch14_dinov2.lvd142m",
            "giant": "vit_giant_patch14_dinov2.lvd142m",
            "small_reg": "vit_small_patch14_reg4_dinov2.lvd142m",
            "base_reg": "vit_base_patch14_reg4_dinov2.lvd142m",
            "large_reg": "vit_large_patch14_reg4_dinov2.lvd142m",
            "giant_reg": "vit_giant_patch14_reg4_dinov2.lvd142m",
        },
        patch_size=14,
        weights="timm's hub copies; files of Meta and Hugging Face",
        licence="Apache-2.0",
        on_hub=True,
        tiny=TINY_WITH_LAYER_SCALE,
    ),
    "retfound": BackboneFamily(
        timm_names={"large": "vit_large_patch16_224.mae"},
        patch_size=16,
        weights="the RETFound (MAE) file of its authors; access is granted on request",
        licence="CC BY-NC 4.0",
        on_hub=False,
    ),
    "retfound_dinov2": BackboneFamily(
        timm_names={"large": "vit_large_patch14_dinov2.lvd142m"},
        patch_size=14,
        weights="the RETFound (DINOv2) files of its authors; access is granted on request",
        licence="CC BY-NC 4.0",
        on_hub=False,
        tiny=TINY_WITH_LAYER_SCALE,
    ),
    "visionfm": BackboneFamily(
        timm_names={"base": "vit_base_patch16_224.mae"},
        patch_size=16,
        weights="the VisionFM file of the modality, of its authors",
        licence="CC BY-NC 4.0",
        on_hub=False,
        statistics=VISIONFM_MODALITIES,
    ),
}


def get_family(name: str) -> BackboneFamily:
    """Look a family up by its name.

    Raises:
        ValueError: there is no such family.
    """
    if name not in FAMILIES:
        allowed = [*FAMILIES, TIMM_PREFIX + "<name>"]
        raise ValueError(f"unknown backbone {name!r}{did_you_mean(name, FAMILIES)}; allowed: {', '.join(allowed)}")
    return FAMILIES[name]


def hub_repository(name: str, size: str) -> str:
    """The repository of timm's copy of a family's pretrained weights on the Hugging Face hub.

    Raises:
        ValueError: there is none; `tiny` exists only with random weights.
    """
    family = get_family(name)
    if not family.on_hub or size == TINY:
        raise ValueError(f"there are no pretrained weights of {name} {size} to download")
    return f"timm/{family.timm_names[size]}"


def repository_without_timm(name: str, size: str) -> str | None:
    """The repository of a backbone's pretrained weights on the hub, as far as it is known before timm is loaded.

    Returns:
        That of a family, or of `timm:<name>` with a tag (`timm:vit_base_patch16_224.mae`). None without a tag, whose
        default timm knows, and for `quickgelu` models, which share the repositories of others.

    Raises:
        ValueError: see `hub_repository`.
    """
    if not name.startswith(TIMM_PREFIX):
        return hub_repository(name, size)
    timm_name = name.removeprefix(TIMM_PREFIX)
    return f"timm/{timm_name}" if "." in timm_name and "quickgelu" not in timm_name else None


def check_backbone(name: str, size: str) -> None:
    """Check that a backbone of this name and size can be asked for (`timm:<name>` is checked by timm when it is built).

    Raises:
        ValueError: the family is unknown, or has no such size.
    """
    if name.startswith(TIMM_PREFIX):
        return
    sizes = get_family(name).sizes
    if size not in sizes:
        raise ValueError(f"{name} has no size {size!r}{did_you_mean(size, sizes)}; allowed: {', '.join(sizes)}")
