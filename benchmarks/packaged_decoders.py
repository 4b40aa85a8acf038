"""What the benchmarks of decoders share: the packaged decoders in the forms that matter, and the loss of a training."""

import pydoc
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from torch import Tensor, nn

from dinov3.eval.segmentation.mask_classification_loss import MaskClassificationLoss
from nnunetv2.experiment.decoder_options import FACTORY
from nnunetv2.experiment.derive import architecture_keywords
from nnunetv2.experiment.schema import find_config, load_config, read_values
from nnunetv2.model.backbone import weights_follow
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.nnUNetTrainer.m2f_utils import DenseToM2FTargetConverter
from nnunetv2.training.nnUNetTrainer.mask_classification_config import MaskClassificationConfig
from nnunetv2.training.nnUNetTrainer.vit_config import ViTnnUNetConfig
from nnunetv2.training.vit.schemas import schema_of


class Form(NamedTuple):
    """A packaged configuration, and what makes it one of the forms of its decoder."""

    config: str
    overrides: tuple[str, ...] = ()


Config = ViTnnUNetConfig | MaskClassificationConfig
MaskLoss = Callable[[dict, Tensor], Tensor]
FORMS = {
    "linear": Form("linear"),
    "segformer bilinear": Form("segformer", ("model.decoder.upsampling=bilinear",)),
    "segformer progressive": Form("segformer", ("model.decoder.upsampling=progressive",)),
    "segformer full": Form("segformer", ("model.decoder.upsampling=full",)),
    "upernet plain": Form("upernet", ("model.decoder.use_progressive_upsample=false",)),
    "upernet": Form("upernet"),
    "dpt": Form("dpt"),
    "unetr deconv": Form("unetr", ("model.decoder.upsample_mode=deconv",)),
    "unetr bilinear": Form("unetr", ("model.decoder.upsample_mode=bilinear",)),
    "primus": Form("primus"),
    "primus multiscale": Form("primus_multiscale"),
    "dino u-net": Form("dinounet"),
}
MASK_CLASSIFICATION_FORMS = {
    "mask2former": Form("m2f"),
    "mask2former 2048": Form("m2f", ("model.hidden_dim=2048",)),
    "eomt": Form("eomt"),
    "pmt": Form("pmt"),
}

# Random weights, all of them trained.
TINY = ("model.backbone_size=tiny", "model.pretrained=false", "model.freeze_backbone=false", "lora.enabled=false")
# Per packaged configuration: a small decoder without dropout.
REDUCED = {
    "linear": ("model.decoder.dropout=0",),
    "segformer": ("model.decoder.decoder_hidden_size=64", "model.decoder.decoder_dropout=0"),
    "upernet": ("model.decoder.hidden_size=64", "model.decoder.decoder_dropout=0"),
    "dpt": ("model.decoder.fusion_hidden_size=64", "model.decoder.decoder_dropout=0"),
    "unetr": ("model.decoder.decoder_channels=[64,48,32,16,16]",),
    "primus": ("model.decoder.embed_dim=96",),
    "primus_multiscale": ("model.decoder.embed_dim=32",),
    "dinounet": (
        "model.decoder.features_per_stage=[16,32,32,64]",
        "model.decoder.rank=32",
        "model.decoder.drop_path_rate=0",
    ),
}
# The same for networks with queries.
REDUCED_MASK_CLASSIFICATION = {
    "m2f": ("model.hidden_dim=64", "model.num_queries=20"),
    "eomt": ("model.decoder.num_queries=20",),
    "pmt": ("model.decoder.num_queries=20",),
}


def read_form(form: Form, overrides: Sequence[str] = ()) -> Config:
    """Read the configuration of a form, with further overrides such as `model.backbone_size=base`."""
    schema = schema_of(read_values(find_config(form.config))["trainer"])
    return load_config(schema, form.config, [*form.overrides, *overrides])


def build_network(
    config: Config, num_classes: int, channels: int = 3, batch_size: int = 1, **options: Any
) -> nn.Module:
    """Build the network of a configuration from random weights, as its plans would for images scaled to [0, 1].

    `options` are those of the factory that no configuration names.
    """
    factory = pydoc.locate(f"{config.model.model_path}.{FACTORY}")
    keywords = architecture_keywords(config, ["RescaleTo01Normalization"] * channels, batch_size)
    with weights_follow():
        return factory(num_classes=num_classes, input_channels=channels, **options, **keywords)


def create_loss(config: Config, num_classes: int) -> Callable[[Any, Tensor], Tensor]:
    """The loss of a configuration's trainer, of what the network returns in training and of labels (B, 1, H, W)."""
    if isinstance(config, MaskClassificationConfig):
        return create_mask_loss(config, num_classes)
    return create_dense_loss()


def create_mask_loss(config: MaskClassificationConfig, num_classes: int) -> MaskLoss:
    """Mask classification of all layers."""
    loss = MaskClassificationLoss(num_labels=num_classes, **asdict(config.m2f_train))
    convert = DenseToM2FTargetConverter(ignore_label=None)

    def compute(queries: dict, labels: Tensor) -> Tensor:
        return loss.to(labels.device).loss_total(loss.of_all_layers(queries, convert(labels)))

    return compute


def create_dense_loss() -> nn.Module:
    """Dice and cross-entropy with the settings of nnU-Net's trainer for classes that do not overlap."""
    dice = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}
    return DC_and_CE_loss(dice, {}, weight_ce=1, weight_dice=1, dice_class=MemoryEfficientSoftDiceLoss)
