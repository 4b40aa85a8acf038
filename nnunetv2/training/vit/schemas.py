"""The configuration schema of each trainer."""

import contextlib

from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.training.nnUNetTrainer.m2f_config import M2FnnUNetConfig
from nnunetv2.training.nnUNetTrainer.segformer_config import SegFormernnUNetConfig
from nnunetv2.training.nnUNetTrainer.unet_config import UNetConfig
from nnunetv2.training.nnUNetTrainer.vit_config import ViTnnUNetConfig

SCHEMAS = (ViTnnUNetConfig, SegFormernnUNetConfig, M2FnnUNetConfig, UNetConfig)


def schema_of(trainer: str) -> type:
    """Return the configuration schema of a trainer: of ours by name, of the user's own by importing it.

    Raises:
        ExperimentError: there is no such trainer, or it is not made for experiments.
    """
    known = {name: schema for schema in SCHEMAS for name in schema.TRAINERS}
    if trainer in known:
        return known[trainer]
    schema = None
    if trainer.isidentifier():
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

        with contextlib.suppress(RuntimeError):
            schema = getattr(recursive_find_trainer_class_by_name(trainer), "config_class", None)
    if schema is None:
        raise ExperimentError(
            f"trainer {trainer!r} does not support ViT experiments; allowed: {', '.join(known)}, or a subclass"
        )
    return schema
