"""Fit a trained decoder, and the ViT beside it, to a network of mask classification: every tensor strictly, but for the
class layer where the classes are others.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from timm.layers import resample_patch_embed
from timm.models import adapt_input_conv
from torch import Tensor, nn

from dinov3.weights.differences import are_differences
from dinov3.weights.fitting import PATCH_EMBEDDING, Fit, fit_weights, mismatches, not_finite
from dinov3.weights.layouts import WeightFile
from nnunetv2.model.decoder_layouts import DECODER_LAYOUTS, DecoderFile
from nnunetv2.model.mask_classification import MaskClassificationModel

NOT_THE_DECODER = ("backbone.", "input_mean", "input_std")
STEM = "adapter.spm.stem.0.weight"  # the one layer of a decoder that sees the image

State = dict[str, Tensor]


def fit_decoder(file: DecoderFile, network: nn.Module) -> Fit:
    """Check that the decoder of a file fills that of a network.

    Args:
        file: the content of the file.
        network: the network, on any device (also `meta`); nothing in it is changed.

    Returns:
        The decoder's weights, by the names of the network. The class layer is not among them where the file's has
        another number of classes.

    Raises:
        ValueError: it is another decoder, or of another size, or tensors are missing, unknown or of another shape.
    """
    _check_network(file, network)
    own = {name: value for name, value in network.state_dict().items() if not name.startswith(NOT_THE_DECODER)}
    if problems := list(_size_problems(file, network, own)):
        raise ValueError(f"{file.path} ({file}) does not fit the network: {'; '.join(problems)}")
    class_layer = file.layout.class_layer
    num_classes = own[f"{class_layer}weight"].shape[0] - 1
    found, notes = _adapt_stem(file.tensors, own)
    problems = mismatches(found, _with_classes_of(own, file)) + not_finite(found)
    if problems:
        raise ValueError(f"{file.path} ({file}) does not fit the decoder: {'; '.join(problems)}")
    if file.num_classes != num_classes:
        found = {name: value for name, value in found.items() if not name.startswith(class_layer)}
        notes.append(f"the class layer starts untrained: the file's has {file.num_classes} classes, this {num_classes}")
    if file.vit is None:
        notes.append("the ViT stays as it is, the file has none")
    if file.aside:
        notes.append(f"{len(file.aside)} other tensors left aside: {', '.join(file.aside)}")
    loaded = f"{len(found)} of {len(own)} tensors of the decoder from {file.path} (layout {file})"
    return Fit(found, "; ".join([loaded, *notes]))


def _check_network(file: DecoderFile, network: nn.Module) -> None:
    layout = file.layout
    if isinstance(network, layout.network):
        return
    own = next((entry.name for entry in DECODER_LAYOUTS if isinstance(network, entry.network)), type(network).__name__)
    raise ValueError(
        f"{file.path} holds a decoder of the layout {layout.name}, which is not this network's ({own}): "
        f"--config {layout.config} has a network for it"
    )


def _size_problems(file: DecoderFile, network: MaskClassificationModel, own: State) -> Iterator[str]:
    """Yield which values of the configuration the file asks for, and which the network has."""
    name, axis = file.layout.width
    found = own[name].shape[axis]
    if file.num_channels not in (None, found):
        yield f"it is for a ViT of {file.num_channels} channels, this one has {found} (model.backbone_size)"
        return  # other sizes follow from it
    for key, asked in file.options.items():
        name, axis = file.layout.options.get(key, ("", 0))
        found = own[name].shape[axis] if name else network.num_masked_blocks
        if asked != found:
            yield f"set {key}={asked}, found {found}"


def _adapt_stem(tensors: State, own: State) -> tuple[State, list[str]]:
    """Adapt the layer of a decoder that sees the image to other channels, as `fit_weights` does with the ViT's."""
    weight, expected = tensors.get(STEM), own.get(STEM)
    if weight is None or expected is None or weight.ndim != 4:
        return tensors, []
    channels = expected.shape[1]
    if not weight.shape[1] == 3 != channels:
        return tensors, []
    return {**tensors, STEM: adapt_input_conv(channels, weight)}, [
        f"the adapter's stem adapted from 3 to {channels} channels"
    ]


def _with_classes_of(own: State, file: DecoderFile) -> State:
    """The network's tensors, with as many classes as the file has."""
    return {
        name: torch.empty(file.num_classes + 1, *value.shape[1:], device="meta")
        if name.startswith(file.layout.class_layer)
        else value
        for name, value in own.items()
    }


def fit_vit(file: DecoderFile, backbone: nn.Module, original: State | None) -> Fit:
    """Check that the ViT of a file with a decoder fits a backbone.

    Args:
        file: the content of the file, with a ViT.
        backbone: a timm ViT, on any device, with or without adapters of peft; nothing in it is changed.
        original: the backbone's own pretrained weights by its names; None: it has none.

    Returns:
        The fine-tuned weights, by the backbone's names. Differences to the original weights were added to these.

    Raises:
        ValueError: it does not fit; or the original weights are needed, and not there or of another ViT.
    """
    vit, notes = _resample_patches(file.vit, backbone)
    fit = fit_weights(vit, backbone)
    tensors = fit.tensors
    if file.needs_original:
        if original is None:
            raise ValueError(
                f"{file.path} ({file}): such files may hold differences to Meta's weights, without which it cannot be "
                "told: set model.pretrained=true, or model.checkpoint_path to Meta's file"
            )
        if _tell_differences(file, tensors, original):
            tensors = {name: _sum(value, original.get(name)) for name, value in tensors.items()}
            notes.append("added to the backbone's own weights, of which they are differences")
    return Fit(tensors, "; ".join([fit.report, *notes]))


def _tell_differences(file: DecoderFile, found: State, original: State) -> bool:
    try:
        return are_differences(found, original)
    except ValueError as error:
        raise ValueError(f"{file.path} ({file}) does not fit the backbone: {error}") from error


def _sum(difference: Tensor, original: Tensor | None) -> Tensor:
    return difference if original is None else original + difference.to(original)


def _resample_patches(vit: WeightFile, backbone: nn.Module) -> tuple[WeightFile, list[str]]:
    """Resample the patch embedding: EoMT's DINOv2 has patches of 16 pixels, Meta's of 14."""
    weight, size = vit.tensors.get(PATCH_EMBEDDING), list(backbone.patch_embed.patch_size)
    if vit.layout.rotary or weight is None or weight.ndim != 4 or list(weight.shape[-2:]) == size:
        return vit, []
    resampled = {**vit.tensors, PATCH_EMBEDDING: resample_patch_embed(weight.float(), size)}
    note = f"WARNING: patches resampled from {weight.shape[-2]} × {weight.shape[-1]} to {size[0]} × {size[1]} pixels"
    return replace(vit, tensors=resampled), [note]
