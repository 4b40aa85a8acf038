"""The trained decoder that a new training starts from: `model.decoder_checkpoint_path`."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.model.decoder_fitting import fit_decoder, fit_vit
from nnunetv2.model.decoder_layouts import DecoderFile, UnknownLayoutError, read_decoder_weights

KEY = "model.decoder_checkpoint_path"


def read_decoder_file(model: Any) -> DecoderFile | None:
    """Read the file that a configuration names.

    Args:
        model: the keys `model` of a checked configuration; None: the network has no backbone.

    Returns:
        Its content; None if none is named, as where the decoder is not of mask classification.

    Raises:
        ValueError: it cannot be read, or holds no decoder in a known layout.
    """
    name = getattr(model, "decoder_checkpoint_path", "")
    if not name:
        return None
    try:
        return read_decoder_weights(Path(name).expanduser())
    except UnknownLayoutError as error:
        raise ValueError(
            f"{KEY}: {error} (weights of a ViT alone belong under model.checkpoint_path, checkpoints of nnU-Net under "
            "-pretrained_weights)"
        ) from error
    except ValueError as error:
        raise ValueError(f"{KEY}: {error}") from error


def check_decoder(file: DecoderFile, network: nn.Module, original: dict[str, Tensor] | None) -> None:
    """Check that a file fits the network of an experiment.

    Args:
        file: the content of the file.
        network: the network, on any device.
        original: the backbone's pretrained weights by its names; None: it starts from random ones.

    Raises:
        ExperimentError: names the tensors, or the options, that do not fit.
    """
    try:
        fit_decoder(file, network)
        if file.vit is not None:
            fit_vit(file, network.backbone, original)
    except ValueError as error:
        raise ExperimentError(f"{KEY}: {error}") from error


def load_decoder_weights(file: DecoderFile, network: nn.Module, has_original: bool) -> list[str]:
    """Load a file into a network.

    Args:
        file: the content of the file.
        network: the network, which may carry LoRA.
        has_original: whether its backbone has pretrained weights by now.

    Returns:
        Lines for the log: what was loaded from where.

    Raises:
        ValueError: the file does not fit.
    """
    decoder = fit_decoder(file, network)
    network.load_state_dict(decoder.tensors, strict=False)  # `fit_decoder` has been stricter
    lines = [f"Loaded {decoder.report}"]
    if file.vit is not None:
        backbone = network.backbone
        vit = fit_vit(file, backbone, backbone.state_dict() if has_original else None)
        backbone.load_state_dict(vit.tensors, strict=False)
        lines.append(f"Loaded {vit.report}")
    return lines
