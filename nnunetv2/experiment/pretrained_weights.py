"""The pretrained weights that a new training starts from: read once, and checked before anything is written."""

import functools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dinov3.weights.fitting import fit_weights
from dinov3.weights.layouts import WeightFile, read_weights
from nnunetv2.experiment.decoder_weights import check_decoder, load_decoder_weights, read_decoder_file
from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.model.backbone import create_backbone, find_pretrained_weights, load_weights, weights_follow
from nnunetv2.model.decoder_layouts import DecoderFile


class PretrainedWeights:
    """The pretrained weights of a network: those of the backbone, and a trained decoder if one is named.

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

    @functools.cached_property
    def decoder_file(self) -> DecoderFile | None:
        """The file with a trained decoder; None: none is named.

        Raises:
            ValueError: it cannot be read.
        """
        return read_decoder_file(self.model)

    @property
    def has_query_bias(self) -> bool:
        """Whether DINOv3's attention needs a query bias for them; timm's hub copies have none, and are not asked.

        Raises:
            ValueError: a file cannot be read.
        """
        if self.model.backbone != "dinov3":
            return False
        if self.decoder_file is not None and self.decoder_file.has_query_bias:
            return True
        return bool(self.model.checkpoint_path) and self.file.has_query_bias

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

    def check_decoder_fit(self, network: nn.Module) -> None:
        """Check that the trained decoder, if one is named, fits a network.

        Args:
            network: that of a derived configuration, on any device.

        Raises:
            ExperimentError: it cannot be read, or does not fit.
        """
        try:
            file = self.decoder_file
            needs_original = file is not None and file.needs_original and self.file is not None
            original = fit_weights(self.file, network.backbone).tensors if needs_original else None
        except ValueError as error:
            raise ExperimentError(str(error)) from error
        if file is not None:
            check_decoder(file, network, original)

    def load(self, network: nn.Module) -> list[str]:
        """Load them into a network, also into one whose backbone already carries LoRA.

        Returns:
            Lines for the log: what was loaded from where, or that nothing was.

        Raises:
            ValueError: they cannot be had or read, or do not fit.
        """
        lines, decoder = [], self.decoder_file
        if self.file is not None:
            lines.append(f"Loaded {load_weights(network.backbone, self.file)}")
        elif decoder is None or decoder.vit is None:
            lines.append(
                "WARNING: model.pretrained is false: the backbone starts from random weights, or from those that "
                "-pretrained_weights names"
            )
        if decoder is not None:
            lines += load_decoder_weights(decoder, network, has_original=self.file is not None)
        return lines
