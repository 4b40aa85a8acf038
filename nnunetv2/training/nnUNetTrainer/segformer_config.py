"""The configuration of the SegFormer command: a flat schema of its own, mapped onto that of every ViT experiment."""

from dataclasses import asdict, dataclass, fields
from typing import ClassVar, Optional

from nnunetv2.experiment.schema import above, at_least, one_of, option
from nnunetv2.training.nnUNetTrainer.vit_config import ViTLoRAConfig, ViTModelConfig, ViTnnUNetConfig, ViTTrainConfig

# ruff: noqa: UP045  (as in vit_config)

MODULE = "nnunetv2.model.model_segformer"


@dataclass
class SegFormerModelConfig:
    """The network: key `model`."""

    backbone: str = option("dinov3", "as in the ViT schema")
    backbone_size: str = option("large", "as in the ViT schema")
    decoder_hidden_size: int = option(256, "channels of the decoder", at_least(1))
    upsampling: str = option("bilinear", "see the decoder", one_of("bilinear", "progressive", "full"))
    checkpoint_path: str = option("", "as in the ViT schema")
    pretrained: bool = option(True, "as in the ViT schema")
    freeze_backbone: bool = option(True, "as in the ViT schema")


@dataclass
class SegFormerLoRAConfig(ViTLoRAConfig):
    """Low-rank adaptation of the backbone: key `lora`; on by default."""

    enabled: bool = option(True, "train low-rank adapters in the backbone, whatever `model.freeze_backbone` says")


@dataclass
class SegFormerTrainConfig(ViTTrainConfig):
    """The training: key `train`."""

    initial_lr: Optional[float] = option(0.001, "learning rate", above(0))
    weight_decay: Optional[float] = option(0.00003, "weight decay", at_least(0))
    gradient_clip: Optional[float] = option(12.0, "largest norm of the gradient", above(0))


@dataclass
class SegFormernnUNetConfig(ViTnnUNetConfig):
    """A SegFormer experiment: the root of the YAML file."""

    TRAINERS: ClassVar[tuple[str, ...]] = ("nnUNetTrainer_segformer", "nnUNetTrainerNoDeepSupervision_segformer")

    trainer: str = option("nnUNetTrainerNoDeepSupervision_segformer", "the trainer class; `-tr` overrides it")
    model: SegFormerModelConfig = option(SegFormerModelConfig, "the network")
    lora: SegFormerLoRAConfig = option(SegFormerLoRAConfig, "low-rank adaptation of the backbone")
    train: SegFormerTrainConfig = option(SegFormerTrainConfig, "the training")

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
        values = {**asdict(config.model), **config.model.decoder}
        flat = cls(
            trainer=config.trainer,
            model=SegFormerModelConfig(
                **{f.name: values[f.name] for f in fields(SegFormerModelConfig) if f.name in values}
            ),
            lora=SegFormerLoRAConfig(**asdict(config.lora)),
            train=SegFormerTrainConfig(**asdict(config.train)),
        )
        return flat if flat.stored() == config else None
