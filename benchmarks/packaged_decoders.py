"""What the benchmarks of decoders share: the packaged decoders in the forms that matter, and the loss of a training."""

import pydoc
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from nnunetv2.model.backbone import weights_follow
from nnunetv2.training.experiment.decoder_options import FACTORY
from nnunetv2.training.experiment.derive import architecture_keywords
from nnunetv2.training.experiment.schema import load_config
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.nnUNetTrainer.vit_config import ViTnnUNetConfig


class Form(NamedTuple):
    """A packaged configuration, and what makes it one of the forms of its decoder."""

    config: str
    overrides: tuple[str, ...] = ()


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
}


def read_form(form: Form, overrides: Sequence[str] = ()) -> ViTnnUNetConfig:
    """Read the configuration of a form, with further overrides such as `model.backbone_size=base`."""
    return load_config(ViTnnUNetConfig, form.config, [*form.overrides, *overrides])


def build_network(config: ViTnnUNetConfig, num_classes: int, channels: int = 3, batch_size: int = 1) -> nn.Module:
    """Build the network of a configuration from random weights, as its plans would for images scaled to [0, 1]."""
    factory = pydoc.locate(f"{config.model.model_path}.{FACTORY}")
    keywords = architecture_keywords(config, ["RescaleTo01Normalization"] * channels, batch_size)
    with weights_follow():
        return factory(num_classes, input_channels=channels, **keywords)


def create_loss() -> nn.Module:
    """Dice and cross-entropy with the settings of nnU-Net's trainer for classes that do not overlap."""
    dice = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}
    return DC_and_CE_loss(dice, {}, weight_ce=1, weight_dice=1, dice_class=MemoryEfficientSoftDiceLoss)
