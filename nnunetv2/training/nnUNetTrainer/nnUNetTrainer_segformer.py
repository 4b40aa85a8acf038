"""The trainer of the SegFormer command."""

import functools
from typing import ClassVar

import torch

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer_vit import nnUNetTrainer_vit
from nnunetv2.training.nnUNetTrainer.segformer_config import SegFormernnUNetConfig


class nnUNetTrainer_segformer(nnUNetTrainer_vit):
    """`nnUNetTrainer_vit` with the flat SegFormer schema for its YAML files.

    Args:
        plans: plans, plain or derived.
        configuration: a 2D configuration of the plans.
        fold: number of the fold, or `all`.
        dataset_json: content of the data set's `dataset.json`.
        device: where to train.
        segformer_config_path: the experiment for plain plans (see `config_path` of `nnUNetTrainer_vit`).

    Attributes:
        segformer_config: the experiment in the flat SegFormer schema, derived from `config`.
    """

    config_class: ClassVar[type] = SegFormernnUNetConfig
    default_config: ClassVar[str] = "segformer_default"

    @functools.wraps(nnUNetTrainer.__init__)
    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int | str,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008
        segformer_config_path: str | None = None,
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device, segformer_config_path)
        self.my_init_kwargs["segformer_config_path"] = self.my_init_kwargs.pop("config_path")

    @property
    def segformer_config(self) -> SegFormernnUNetConfig | None:
        """The experiment in the flat SegFormer schema; None if that schema cannot express what the plans hold."""
        return SegFormernnUNetConfig.from_stored(self.config)
