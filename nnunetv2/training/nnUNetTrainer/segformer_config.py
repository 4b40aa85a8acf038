"""The configuration of the SegFormer command: a flat schema of its own, mapped onto that of every ViT experiment."""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, ClassVar, Optional

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from dinov3.configuration.schema import OneOf, Section, read
from nnunetv2.experiment.decoder_options import complete_options
from nnunetv2.training.nnUNetTrainer.vit_config import ViTLoRAConfig, ViTModelConfig, ViTnnUNetConfig, ViTTrainConfig

# ruff: noqa: UP045  (as in vit_config)

MODULE = "nnunetv2.model.model_segformer"


@dataclass
class SegFormerModelConfig(Section):
    """The network: key `model`."""

    backbone: str = "dinov3"
    backbone_size: str = "large"
    decoder_hidden_size: PositiveInt = 256
    """channels of the decoder"""
    upsampling: Annotated[str, OneOf("bilinear", "progressive", "full")] = "bilinear"
    """see the decoder"""
    checkpoint_path: str = ""
    pretrained: bool = True
    freeze_backbone: bool = True


@dataclass
class SegFormerLoRAConfig(ViTLoRAConfig):
    """Low-rank adaptation of the backbone: key `lora`; on by default."""

    enabled: bool = True


@dataclass
class SegFormerTrainConfig(ViTTrainConfig):
    """The training: key `train`."""

    initial_lr: Optional[PositiveFloat] = 0.001
    weight_decay: Optional[NonNegativeFloat] = 0.00003
    gradient_clip: Optional[PositiveFloat] = 12.0


@dataclass
class SegFormernnUNetConfig(ViTnnUNetConfig):
    """A SegFormer experiment: the root of the YAML file."""

    TRAINERS: ClassVar[tuple[str, ...]] = ("nnUNetTrainer_segformer", "nnUNetTrainerNoDeepSupervision_segformer")

    trainer: str = "nnUNetTrainerNoDeepSupervision_segformer"
    model: SegFormerModelConfig = field(default_factory=SegFormerModelConfig)
    lora: SegFormerLoRAConfig = field(default_factory=SegFormerLoRAConfig)
    train: SegFormerTrainConfig = field(default_factory=SegFormerTrainConfig)

    def stored(self) -> ViTnnUNetConfig:
        """The same experiment in the schema of every ViT experiment."""
        values = asdict(self.model)
        decoder = {key: values.pop(key) for key in ("decoder_hidden_size", "upsampling")}
        return ViTnnUNetConfig(
            trainer=self.trainer,
            model=ViTModelConfig(model_path=MODULE, decoder=decoder, **values),
            lora=ViTLoRAConfig(**asdict(self.lora)),
            train=ViTTrainConfig(**asdict(self.train)),
        )

    @classmethod
    def from_stored(cls, config: ViTnnUNetConfig) -> Optional["SegFormernnUNetConfig"]:
        """The experiment of a configuration in the schema of every ViT experiment, the inverse of `stored`.

        Returns:
            None if this schema has no key for a value of the configuration, such as another decoder.
        """
        model = {**asdict(config.model), **config.model.decoder}
        model = {field.name: model[field.name] for field in fields(SegFormerModelConfig) if field.name in model}
        flat = read(cls, {**asdict(config), "model": model})
        return flat if _completed(flat.stored()) == _completed(config) else None


def _completed(config: ViTnnUNetConfig) -> ViTnnUNetConfig:
    """A configuration with all options of its decoder."""
    model = config.model
    return replace(config, model=replace(model, decoder=complete_options(model.model_path, model.decoder)))
