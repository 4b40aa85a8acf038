"""The layouts in which trained networks of mask classification are published: recognised by their names, which are
brought to ours.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dinov3.models.timm_dinov3 import PERIODS, timm_to_reference
from dinov3.weights.layouts import PREFIXES, WeightFile, recognise_weights, strip_common_prefix, unwrap
from dinov3.weights.reading import read_checkpoint
from nnunetv2.model.eomt_names import split_eomt
from nnunetv2.model.mask_classification import MaskClassificationModel
from nnunetv2.model.model_eomt import EoMTSegmentationModel
from nnunetv2.model.model_m2f import M2FSegmentationModel
from nnunetv2.model.model_pmt import PMTSegmentationModel

State = dict[str, Tensor]

MASK_PROBABILITIES = r"(network\.)?(decoder\.)?attn_mask_probs"  # one number per block with masked attention
ASIDE = rf"{MASK_PROBABILITIES}|criterion\..*"
SEGMENTOR = "segmentation_model."
VIT_OF_SEGMENTOR = f"{SEGMENTOR}0.backbone."


class UnknownLayoutError(ValueError):
    """A file does not hold a decoder in a known layout."""


@dataclass(frozen=True)
class DecoderLayout:
    """One way to name the tensors of a network of mask classification.

    Attributes:
        name: for people.
        network: the class of the network.
        config: the packaged configuration of this network.
        signature: names that all of its files hold.
        split: splits tensors into those of the decoder, by the network's names, and those of the ViT, if there are
            any, by names that `dinov3.weights.layouts` knows.
        class_layer: beginning of the names of the layer that has an output for each class and one for "no object".
        width: tensor and axis that tell the ViT's channels.
        options: keys of the configuration, and for each the tensor and axis that tell its value.
        may_hold_differences: whether the ViT's weights may be differences to those that it was fine-tuned from.
    """

    name: str
    network: type[MaskClassificationModel]
    config: str
    signature: frozenset[str]
    split: Callable[[State], tuple[State, State]]
    class_layer: str
    width: tuple[str, int]
    options: dict[str, tuple[str, int]]
    may_hold_differences: bool = False


@dataclass(frozen=True)
class DecoderFile:
    """The content of a file with a trained decoder.

    Attributes:
        path: the file.
        layout: its layout.
        wrapper: the key under which the weights stand; empty for a bare dictionary.
        tensors: the decoder's tensors by the names of our network.
        vit: the ViT beside it; None: the file has none.
        num_blocks: number of blocks with masked attention; None: the file does not tell.
        aside: names of tensors in the file that are no weights.
    """

    path: Path
    layout: DecoderLayout
    wrapper: str
    tensors: State
    vit: WeightFile | None
    num_blocks: int | None
    aside: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """Number of classes, "no object" not counted."""
        return self.tensors[f"{self.layout.class_layer}weight"].shape[:1].numel() - 1

    @property
    def num_channels(self) -> int | None:
        """Number of the ViT's channels; None: the tensor that tells it is missing."""
        return _size(self.tensors, self.layout.width)

    @property
    def options(self) -> dict[str, int]:
        """Keys of the configuration, with the values that a network for this file needs."""
        sizes = {key: _size(self.tensors, place) for key, place in self.layout.options.items()}
        sizes["model.decoder.num_blocks"] = self.num_blocks
        return {key: size for key, size in sizes.items() if size is not None}

    @property
    def needs_original(self) -> bool:
        """Whether the weights that its ViT was fine-tuned from must be known to tell what the file holds."""
        return self.layout.may_hold_differences and self.vit is not None and self.vit.layout.rotary is True

    @property
    def has_query_bias(self) -> bool:
        """Whether the file holds a DINOv3 with a query or value bias other than zero."""
        return self.vit is not None and self.vit.has_query_bias

    def __str__(self) -> str:
        """Layout and wrapper, for messages."""
        return f"{self.layout.name}{f', under {self.wrapper!r}' if self.wrapper else ''}"


def _size(tensors: State, place: tuple[str, int]) -> int | None:
    """The size of a tensor along an axis; None: there is no such tensor or axis."""
    tensor, axis = tensors.get(place[0]), place[1]
    return None if tensor is None or tensor.ndim <= axis else tensor.shape[axis]


def read_decoder_weights(path: str | Path) -> DecoderFile:
    """Read a file with a trained decoder, and recognise its layout.

    Raises:
        UnknownLayoutError: it holds no decoder in a known layout; the message names the file.
        ValueError: the file cannot be read, or its ViT is not one.
    """
    path = Path(path)
    wrapper, content = _unwrap(read_checkpoint(path), path)
    content = strip_common_prefix(content)
    aside = tuple(name for name in content if re.fullmatch(ASIDE, name))
    state = _strip_network({name: value for name, value in content.items() if name not in aside})
    layout = next((entry for entry in DECODER_LAYOUTS if entry.signature <= state.keys()), None)
    if layout is None:
        raise UnknownLayoutError(
            f"{path} does not hold a decoder in a known layout ({', '.join(x.name for x in DECODER_LAYOUTS)}): its "
            f"first tensors are {', '.join(list(state)[:3])}"
        )
    try:
        decoder, vit = layout.split(state)
    except ValueError as error:
        raise ValueError(f"{path} ({layout.name}) cannot be used: {error}") from error
    blocks = next((content[name].numel() for name in aside if re.fullmatch(MASK_PROBABILITIES, name)), None)
    backbone = recognise_weights(path, wrapper, vit) if vit else None
    return DecoderFile(path, layout, wrapper, decoder, backbone, blocks, aside)


def _unwrap(content: Any, path: Path) -> tuple[str, State]:
    try:
        return unwrap(content, path)
    except ValueError as error:
        raise UnknownLayoutError(str(error)) from error


def _strip_network(state: State) -> State:
    state = strip_common_prefix(state, (*PREFIXES, "network."))
    if all(re.match(r"[01]\.", name) for name in state):  # a segmentor whose list of parts was saved alone
        return {f"{SEGMENTOR}{name}": value for name, value in state.items()}
    return state


def _split_pmt(state: State) -> tuple[State, State]:
    # our decoder includes the batch norms of its features
    return {f"decoder.{name}" if name.startswith("bn.") else name: value for name, value in state.items()}, {}


def _split_segmentor(state: State) -> tuple[State, State]:
    """Split DINOv3's segmentor of Mask2Former: its ViT has the reference's names, or in our trainings timm's."""
    if any(".lora_" in name for name in state):
        raise ValueError("its ViT has LoRA adapters, which must be merged into its weights first")
    vit = {n.removeprefix(VIT_OF_SEGMENTOR): v for n, v in state.items() if n.startswith(VIT_OF_SEGMENTOR)}
    own = {}
    for name, value in state.items():
        if not name.startswith(VIT_OF_SEGMENTOR):
            name = re.sub(rf"^{SEGMENTOR}0\.", "adapter.", name)
            own[re.sub(rf"^{SEGMENTOR}1\.", "head.", name)] = value
    return own, timm_to_reference(vit, bias_mask=False) if PERIODS in vit else vit


DECODER_LAYOUTS = (
    DecoderLayout(
        "EoMT (Hugging Face)",
        EoMTSegmentationModel,
        "eomt",
        frozenset({"query.weight", "class_predictor.weight"}),
        split_eomt,
        class_layer="decoder.class_head.",
        width=("decoder.q.weight", 1),
        options={"model.decoder.num_queries": ("decoder.q.weight", 0)},
        may_hold_differences=True,
    ),
    DecoderLayout(
        "PMT",
        PMTSegmentationModel,
        "pmt",
        frozenset({"decoder.q.weight", "decoder.class_head.weight", "decoder.scalers.0", "bn.0.weight"}),
        _split_pmt,
        class_layer="decoder.class_head.",
        width=("decoder.q.weight", 1),
        options={
            "model.decoder.num_queries": ("decoder.q.weight", 0),
            "model.decoder.mlp_dim": ("decoder.blocks.0.mlp.up_proj.weight", 0),
        },
    ),
    DecoderLayout(
        "Mask2Former (DINOv3's segmentor)",
        M2FSegmentationModel,
        "m2f",
        frozenset(f"{SEGMENTOR}1.predictor.{layer}.weight" for layer in ("class_embed", "query_feat")),
        _split_segmentor,
        class_layer="head.predictor.class_embed.",
        width=("adapter.level_embed", 1),
        options={
            "model.num_queries": ("head.predictor.query_feat.weight", 0),
            "model.hidden_dim": ("head.predictor.query_feat.weight", 1),
        },
    ),
)
