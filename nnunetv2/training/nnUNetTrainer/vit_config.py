"""The configuration of a ViT experiment: what stands in the YAML file, with its defaults and rules."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Optional
from urllib.error import HTTPError

from nnunetv2.experiment.decoder_options import MASK2FORMER, misfits, read_factory
from nnunetv2.experiment.schema import Rule, above, at_least, find_path, one_of, option, within
from nnunetv2.model.backbone_families import (
    FAMILIES,
    NO_WEIGHTS_REMEDY,
    TIMM_PREFIX,
    check_backbone,
    did_you_mean,
    get_family,
    repository_without_timm,
)

# `Optional[...]`, not `... | None`, in the fields: every omegaconf that we allow reads it.
# ruff: noqa: UP045

BLOCKS = Rule("ascending numbers from 0", lambda v: bool(v) and v == sorted(set(v)) and v[0] >= 0)
M2F_TRAINER = "nnUNetTrainer_m2f"
PATCH_SIZE = Rule("two positive numbers, [height, width]", lambda v: len(v) == 2 and min(v) > 0)


@dataclass
class BackboneConfig:
    """The keys of `model` that every decoder shares."""

    backbone: str = option("dinov3", "a family of the backbone table (`dinov3`, `dinov2`, …) or `timm:<name>`")
    backbone_size: str = option("large", "a size of the family, or `tiny`; not used with `timm:<name>`")
    checkpoint_path: str = option("", "file of pretrained backbone weights; empty: timm's hub copy")
    pretrained: bool = option(True, "without a file: start from timm's hub copy; false: from random weights")
    freeze_backbone: bool = option(True, "train the decoder only; without effect where LoRA is enabled")
    input_norm: str = option(
        "auto",
        "`auto`: the backbone's mean and std on channels that nnU-Net scales to [0, 1]; `backbone`: on all channels; "
        "`none`; `auto:NAME` and `backbone:NAME` choose among the statistics of a backbone (VisionFM: fundus, oct, …)",
        Rule("auto, none, backbone or backbone:NAME", lambda v: v.split(":")[0] in ("auto", "none", "backbone")),
    )

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

    model_path: str = option("nnunetv2.model.model_upernet", "Python module with `create_segmentation_model`")
    out_layers: Optional[list[int]] = option(
        None, "0-based blocks whose outputs the decoder gets; null: the ends of four even quarters", BLOCKS
    )
    decoder: dict[str, Any] = option({}, "keywords of the decoder (see its page)")

    def problems(self) -> Iterator[str]:
        """Yield what is impossible about the backbone and the decoder."""
        yield from super().problems()
        if self.model_path == MASK2FORMER:
            yield f"model.model_path: {MASK2FORMER} has a schema of its own, that of {M2F_TRAINER}: use --config m2f"
            return
        try:
            factory = read_factory(self.model_path)
        except ValueError as error:
            yield f"model.model_path: {error}"
            return
        for key, value in self.decoder.items() if factory.is_known else ():
            if key not in factory.options:
                hint = did_you_mean(str(key), factory.options)
                allowed = ", ".join(factory.options)
                yield f"unknown key model.decoder.{key} (value {value!r}){hint}; allowed: {allowed}"
            else:
                yield from misfits(f"model.decoder.{key}", value, factory.options[key])


@dataclass
class ViTLoRAConfig:
    """Low-rank adaptation of the backbone: key `lora`."""

    enabled: bool = option(False, "train low-rank adapters in the backbone, whatever `model.freeze_backbone` says")
    r: int = option(8, "rank", at_least(1))
    lora_alpha: float = option(16.0, "the adapters are scaled by lora_alpha / r", above(0))
    target_modules: list[str] = option(
        ["qkv"], "layers of the transformer blocks to adapt: qkv, proj, fc1, fc2", Rule("not empty", bool)
    )
    lora_dropout: float = option(0.05, "dropout on the adapters' input", within(0, 1))

    @property
    def scale(self) -> float:
        """The adapters' output is scaled by this, divided by the rank."""
        return self.lora_alpha


@dataclass
class TrainConfig:
    """The keys of `train` that every decoder shares. What is null has nnU-Net's own value."""

    optimizer: str = option("sgd", "`sgd` (Nesterov) or `adamw`", one_of("sgd", "adamw"))
    initial_lr: Optional[float] = option(None, "learning rate (nnU-Net: 0.01)", above(0))
    weight_decay: Optional[float] = option(None, "weight decay (nnU-Net: 0.00003)", at_least(0))
    layer_decay: Optional[float] = option(
        None,
        "factor on the learning rate per layer, from the last block down; full fine-tuning only",
        Rule("above 0 and at most 1", lambda v: 0 < v <= 1),
    )
    backbone_lr_factor: float = option(
        1.0, "factor on the learning rate of the backbone's own weights; full fine-tuning only", above(0)
    )
    betas: list[float] = option(
        [0.9, 0.999],
        "AdamW's betas",
        Rule("two numbers in [0, 1)", lambda v: len(v) == 2 and all(0 <= b < 1 for b in v)),
    )
    momentum: float = option(0.99, "SGD's momentum", Rule("above 0 and below 1", lambda v: 0 < v < 1))
    schedule: str = option("poly", "learning rate over the epochs", one_of("poly", "cosine", "onecycle"))
    warmup_epochs: int = option(0, "epochs of linear rise; for `onecycle` the length of the rise", at_least(0))
    num_epochs: Optional[int] = option(None, "epochs (nnU-Net: 1000)", at_least(1))
    num_iterations_per_epoch: Optional[int] = option(None, "training iterations per epoch (nnU-Net: 250)", at_least(1))
    num_val_iterations_per_epoch: Optional[int] = option(None, "validation iterations (nnU-Net: 50)", at_least(1))
    batch_size: Optional[int] = option(None, "images per batch, over all GPUs (nnU-Net: from the plans)", at_least(1))
    patch_size: Optional[list[int]] = option(None, "[height, width] in pixels (nnU-Net: from the plans)", PATCH_SIZE)
    precision: str = option(
        "float16",
        "of the network's forward pass; with autocast on a GPU, and on a CPU to bfloat16 where it computes natively",
        one_of("float32", "float16", "bfloat16"),
    )
    save_every: Optional[int] = option(None, "epochs between two checkpoints (nnU-Net: 50)", at_least(1))
    seed: Optional[int] = option(
        None, "seed; with nnUNet_n_proc_DA=0 a training is repeatable. null: none", at_least(0)
    )
    compile: Optional[bool] = option(None, "torch.compile, on a GPU (nnU-Net: as the variable nnUNet_compile says)")


@dataclass
class ViTTrainConfig(TrainConfig):
    """The training: key `train`."""

    gradient_clip: Optional[float] = option(None, "largest norm of the gradient (nnU-Net: 12)", above(0))


@dataclass
class ViTnnUNetConfig:
    """A ViT experiment: the root of the YAML file."""

    # The trainers that this schema is for, by name: a configuration is checked before they are imported.
    TRAINERS: ClassVar[tuple[str, ...]] = (
        "nnUNetTrainer_vit",
        "nnUNetTrainerNoDeepSupervision_vit",
        "nnUNetTrainer_mymodel",
        "nnUNetTrainerNoDeepSupervision_mymodel",
    )

    # what to turn down when training diverges
    CLIP_KEY: ClassVar[str] = "train.gradient_clip"
    PRECISION_KEY: ClassVar[str] = "train.precision"

    trainer: str = option("nnUNetTrainer_vit", "the trainer class; `-tr` overrides it")
    model: ViTModelConfig = option(ViTModelConfig, "the network")
    lora: ViTLoRAConfig = option(ViTLoRAConfig, "low-rank adaptation of the backbone")
    train: ViTTrainConfig = option(ViTTrainConfig, "the training")

    def stored(self) -> "ViTnnUNetConfig":
        """The configuration as it goes into the plans: this one."""
        return self

    @property
    def gradient_clip(self) -> Optional[float]:
        """Largest norm of the gradient; None: nnU-Net's."""
        return self.train.gradient_clip

    @property
    def mode(self) -> str:
        """How the backbone trains: `lora`, `frozen` or `full`."""
        if self.lora.enabled:
            return "lora"
        return "frozen" if self.model.freeze_backbone else "full"

    def problems(self) -> Iterator[str]:
        """Yield what is impossible about combinations of values."""
        yield from self.model.problems()
        train = self.train
        if train.layer_decay is not None and self.mode != "full":
            yield (
                f"train.layer_decay is {train.layer_decay}, but no layer of the backbone trains: it needs "
                "model.freeze_backbone=false and lora.enabled=false"
            )
        if train.warmup_epochs >= (train.num_epochs or 1000):
            yield f"train.warmup_epochs must be below train.num_epochs, found {train.warmup_epochs}"
        yield from self._patch_problems()

    def _patch_problems(self) -> Iterator[str]:
        size, family = self.train.patch_size, FAMILIES.get(self.model.backbone)
        if size is None or family is None or not PATCH_SIZE.holds(size):
            return
        if min(size) < family.patch_size:
            patch = f"{family.patch_size} × {family.patch_size}"
            yield f"train.patch_size must be at least one ViT patch ({patch}), found {size}"
