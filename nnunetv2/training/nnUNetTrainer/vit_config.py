"""The configuration of a ViT experiment: what stands in the YAML file, with its defaults and rules."""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Optional
from urllib.error import HTTPError

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from dinov3.configuration.schema import Section, rule
from dinov3.configuration.yaml_files import find_path
from dinov3.hub.families import (
    FAMILIES,
    NO_WEIGHTS_REMEDY,
    TIMM_PREFIX,
    check_backbone,
    get_family,
    repository_without_timm,
)
from nnunetv2.experiment.decoder_options import MASK_CLASSIFICATION
from nnunetv2.training.nnUNetTrainer.experiment_config import BelowOne, ExperimentConfig, TrainConfig

# `Optional[...]`, not `... | None`, in the fields: every omegaconf that we allow reads it.
# ruff: noqa: UP045

M2F_TRAINER = "nnUNetTrainer_m2f"


def is_ascending(blocks: list[int]) -> bool:
    """Whether blocks are named in their order, each once, and at least one."""
    return bool(blocks) and blocks == sorted(set(blocks))


Blocks = Annotated[list[NonNegativeInt], rule("ascending numbers from 0", is_ascending)]
InputNorm = Annotated[
    str,
    rule("auto, none, backbone or backbone:NAME", lambda text: text.split(":")[0] in ("auto", "none", "backbone")),
]
Layers = Annotated[list[str], rule("at least one name", bool)]


# The strings below the fields are their descriptions in the configuration reference; subclasses inherit them.


@dataclass
class BackboneConfig(Section):
    """The keys of `model` that every decoder shares."""

    backbone: str = "dinov3"
    """a family of the backbone table (`dinov3`, `dinov2`, …) or `timm:<name>`"""
    backbone_size: str = "large"
    """a size of the family, or `tiny`; not used with `timm:<name>`"""
    checkpoint_path: str = ""
    """file of pretrained backbone weights; empty: timm's hub copy"""
    pretrained: bool = True
    """without a file: start from timm's hub copy; false: from random weights"""
    freeze_backbone: bool = True
    """train the decoder only; without effect where LoRA is enabled"""
    input_norm: InputNorm = "auto"
    """`auto`: the backbone's mean and std on channels that nnU-Net scales to [0, 1]; `backbone`: on all channels;
    `none`; `auto:NAME` and `backbone:NAME` choose among the statistics of a backbone (VisionFM: fundus, oct, …)"""

    def problems(self) -> Iterator[str]:
        """Yield what is impossible about the backbone."""
        try:
            check_backbone(self.backbone, self.backbone_size)
        except ValueError as error:
            yield f"model.backbone, model.backbone_size: {error}"
        else:
            yield from self._statistics_problems()

    def _statistics_problems(self) -> Iterator[str]:
        kind, _, which = self.input_norm.partition(":")
        if not which:
            return
        is_timm = self.backbone.startswith(TIMM_PREFIX)
        statistics = [] if is_timm or kind == "none" else list(get_family(self.backbone).statistics)
        if which not in statistics:
            allowed = ", ".join(statistics) or "none"
            yield f"model.input_norm={self.input_norm}: no such statistics of {self.backbone}; allowed: {allowed}"

    def weight_problems(self) -> Iterator[str]:
        """Yield why a new training cannot have its pretrained weights, as far as it shows without torch and timm."""
        if self.checkpoint_path:
            if find_path(self.checkpoint_path) is None:
                yield f"model.checkpoint_path: no such file: {self.checkpoint_path!r}"
        elif self.pretrained:
            from dinov3.weights.hub import require_hub_weights  # the hub's client takes longer to load than the rest

            try:
                repository = repository_without_timm(self.backbone, self.backbone_size)
                if repository is not None:
                    require_hub_weights(repository)
            except ValueError as error:
                if self.backbone.startswith(TIMM_PREFIX) and isinstance(error.__cause__, HTTPError):
                    return  # the hub answers and knows no such name: timm will say which there are
                yield f"model.pretrained is true, but {error}: {NO_WEIGHTS_REMEDY}"


@dataclass
class ViTModelConfig(BackboneConfig):
    """The network: key `model`."""

    model_path: str = "nnunetv2.model.model_upernet"
    """Python module with `create_segmentation_model`"""
    out_layers: Optional[Blocks] = None
    """ascending 0-based numbers of the blocks whose outputs the decoder gets; null: the ends of four even quarters"""
    decoder: dict[str, Any] = field(default_factory=dict)
    """keywords of the decoder (see its page)"""

    @staticmethod
    def decoder_keys(options: dict[str, Any]) -> dict[str, Any]:
        """The keys of `model` that stand for the options of a decoder."""
        return {"decoder": options}

    def problems(self) -> Iterator[str]:
        """Yield what is impossible about the backbone and the decoder; its options are checked when it is imported."""
        yield from super().problems()
        if _is_module(self.model_path):
            yield from self._network_problems()
        else:
            yield (
                f"model.model_path: module {self.model_path!r} not found: it must be importable, such as "
                f"{type(self).model_path}"
            )

    def _network_problems(self) -> Iterator[str]:
        """Yield why the trainers of this schema cannot train the network of a module."""
        config = MASK_CLASSIFICATION.get(self.model_path)
        if config is not None:
            yield (
                f"model.model_path: {self.model_path} has a schema of its own, that of {M2F_TRAINER}: use --config "
                f"{config}"
            )


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):  # a package above it is missing, or it cannot be a name
        return False
    except Exception:  # of the code of a package above it, which is told when the module is imported
        return True


@dataclass
class ViTLoRAConfig(Section):
    """Low-rank adaptation of the backbone: key `lora`."""

    enabled: bool = False
    """train low-rank adapters in the backbone, whatever `model.freeze_backbone` says"""
    r: PositiveInt = 8
    """rank"""
    lora_alpha: PositiveFloat = 16.0
    """the adapters are scaled by lora_alpha / r"""
    target_modules: Layers = field(default_factory=lambda: ["qkv"])
    """layers of the transformer blocks to adapt, at least one: qkv, proj (the attention's projection), fc1, fc2"""
    lora_dropout: BelowOne = 0.05
    """dropout on the adapters' input"""
    use_rslora: bool = False
    """scale the adapters by lora_alpha / √r instead of lora_alpha / r"""


@dataclass
class BackboneTrainConfig(TrainConfig):
    """The keys of `train` that every decoder shares."""

    layer_decay: Annotated[Optional[float], Field(gt=0, le=1)] = None
    """learning-rate multiplier per layer, from the last block down; full fine-tuning only"""
    backbone_lr_factor: PositiveFloat = 1.0
    """learning-rate multiplier of the backbone's own weights; full fine-tuning only"""
    backbone_warmup_epochs: Optional[NonNegativeFloat] = None
    """two-stage warm-up: the backbone stands still while the new parts warm up, and then warms up for so many epochs;
    full fine-tuning with `poly` or `cosine` only. null: it warms up with them"""
    backbone_warmup_fraction: Optional[BelowOne] = None
    """instead of backbone_warmup_epochs, as a fraction of the training"""

    def backbone_warmup(self, num_epochs: int) -> float | None:
        """Length of the backbone's own warm-up, in epochs; None: it has none."""
        fraction = self.backbone_warmup_fraction
        return self.backbone_warmup_epochs if fraction is None else fraction * num_epochs

    def problems(self) -> Iterator[str]:
        """Yield what is impossible about combinations of values."""
        yield from super().problems()
        yield from self._length_problems("backbone_warmup")
        num_epochs = self.num_epochs or 1000
        first, second = self.warmup(num_epochs), self.backbone_warmup(num_epochs)
        if second is None:
            return
        if self.schedule == "onecycle":
            yield "train.schedule is onecycle, which has no two-stage warm-up: use poly or cosine"
        if first < num_epochs <= first + second:
            yield (
                "train.warmup_* and train.backbone_warmup_* must together be below train.num_epochs "
                f"({num_epochs}), found {first + second:g}"
            )


@dataclass
class ViTTrainConfig(BackboneTrainConfig):
    """The training: key `train`."""

    gradient_clip: Optional[PositiveFloat] = None
    """maximum gradient norm (nnU-Net: 12)"""


@dataclass
class ViTnnUNetConfig(ExperimentConfig):
    """A ViT experiment: the root of the YAML file."""

    TRAINERS: ClassVar[tuple[str, ...]] = (
        "nnUNetTrainer_vit",
        "nnUNetTrainerNoDeepSupervision_vit",
        "nnUNetTrainer_mymodel",
        "nnUNetTrainerNoDeepSupervision_mymodel",
    )

    trainer: str = "nnUNetTrainer_vit"
    """the trainer class; `-tr` overrides it"""
    model: ViTModelConfig = field(default_factory=ViTModelConfig)
    lora: ViTLoRAConfig = field(default_factory=ViTLoRAConfig)
    train: ViTTrainConfig = field(default_factory=ViTTrainConfig)

    @property
    def mode(self) -> str:
        """How the backbone trains: `lora`, `frozen` or `full`."""
        if self.lora.enabled:
            return "lora"
        return "frozen" if self.model.freeze_backbone else "full"

    def problems(self) -> Iterator[str]:
        """Yield what is impossible about combinations of values."""
        yield from self.model.problems()
        yield from super().problems()
        layer_decay = self.train.layer_decay
        if layer_decay is not None and self.mode != "full":
            yield (
                f"train.layer_decay is {layer_decay}, but no layer of the backbone trains: it needs "
                "model.freeze_backbone=false and lora.enabled=false"
            )
        yield from self._patch_problems()

    def _patch_problems(self) -> Iterator[str]:
        size, family = self.train.patch_size, FAMILIES.get(self.model.backbone)
        if size is not None and family is not None and min(size) < family.patch_size:
            patch = f"{family.patch_size} × {family.patch_size}"
            yield f"train.patch_size must be at least one ViT patch ({patch}), found {size}"

    def weight_problems(self) -> Iterator[str]:
        """Yield why a new training cannot have its pretrained weights, as far as it shows without torch and timm."""
        yield from self.model.weight_problems()

    def start_from_checkpoint(self) -> None:
        """Ask for no pretrained weights: a checkpoint of another training overwrites them at once."""
        self.model.pretrained = False
