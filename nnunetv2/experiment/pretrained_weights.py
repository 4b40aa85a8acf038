"""The pretrained weights that a new training starts from: read once, and checked before anything is written."""

import functools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dinov3.weights.fitting import fit_weights
from dinov3.weights.layouts import WeightFile, read_weights
from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.model.backbone import create_backbone, find_pretrained_weights, load_weights, weights_follow


class PretrainedWeights:
    """The pretrained weights of a backbone.

    Args:
        model: the keys `model` of a checked configuration; None: the network has no backbone.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    @functools.cached_property
    def file(self) -> WeightFile | None:
        """The file of weights, or timm's hub copy, which is downloaded where needed; None: none are asked for.

        Raises:
            ValueError: they cannot be had or read.
        """
        if self.model is None:
            return None
        if self.model.checkpoint_path:
            return read_weights(Path(self.model.checkpoint_path).expanduser())
        if self.model.pretrained:
            return read_weights(find_pretrained_weights(self.model.backbone, self.model.backbone_size))
        return None

    @property
    def has_query_bias(self) -> bool:
        """Whether DINOv3's attention needs a query bias for them; timm's hub copies have none, and are not asked.

        Raises:
            ValueError: the file cannot be read.
        """
        return self.model.backbone == "dinov3" and bool(self.model.checkpoint_path) and self.file.has_query_bias

    def check_fit(self, configuration: dict[str, Any]) -> None:
        """Check that they are there and fit the backbone of a derived configuration.

        Raises:
            ExperimentError: they cannot be had or read, or do not fit.
        """
        try:
            if self.file is None:
                return
            with torch.device("meta"), weights_follow():
                backbone, _, _ = create_backbone(
                    self.model.backbone,
                    self.model.backbone_size,
                    in_chans=len(configuration["normalization_schemes"]),
                    query_bias=configuration["architecture"]["arch_kwargs"]["query_bias"],
                )
            fit_weights(self.file, backbone)
        except ValueError as error:
            raise ExperimentError(str(error)) from error

    def load(self, backbone: nn.Module) -> str:
        """Load them into a backbone, also into one that already carries LoRA.

        Returns:
            A line for the log: what was loaded from where, or that nothing was.

        Raises:
            ValueError: they cannot be had or read, or do not fit.
        """
        if self.file is not None:
            return f"Loaded {load_weights(backbone, self.file)}"
        return (
            "WARNING: model.pretrained is false: the backbone starts from random weights, or from those that "
            "-pretrained_weights names"
        )
