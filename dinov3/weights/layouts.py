"""The layouts in which pretrained ViTs are published: recognised by their keys, brought to Meta's or timm's names."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinov3.models.timm_dinov3 import PRETRAINING_ONLY, has_query_bias
from dinov3.weights.reading import read_checkpoint

State = dict[str, Tensor]

# Keys of a training's checkpoint under which the weights stand, by preference.
WRAPPERS = ("teacher", "model", "state_dict", "visionfm_state_dict")
# Prefixes that a wrapper module puts before every name.
PREFIXES = ("module.", "model.", "_orig_mod.")
TRUNK = "backbone."
# What may stand beside the trunk: heads of the pretraining or of a fine-tuned task.
HEADS = ("dino_head.", "ibot_head.", "head.", "decode_head.", "auxiliary_head.")


@dataclass(frozen=True)
class Layout:
    """One way to name the tensors of a ViT.

    Attributes:
        name: for people.
        signature: names that all of its files hold, and no file of the layouts further down the table.
        aside: regular expression of names of tensors that are not part of a backbone.
        rotary: whether it is for networks with DINOv3's rotary encoding; None for either kind.
        rename: brings its names to Meta's.
    """

    name: str
    signature: frozenset[str]
    aside: str
    rotary: bool | None
    rename: Callable[[State], State] = dict


@dataclass(frozen=True)
class WeightFile:
    """The content of a file of weights.

    Attributes:
        path: the file.
        layout: its layout.
        wrapper: the key under which the weights stand; empty for a bare dictionary.
        tensors: Meta's or timm's names to tensors.
        aside: names of tensors in the file that are not part of a backbone.
    """

    path: Path
    layout: Layout
    wrapper: str
    tensors: State
    aside: tuple[str, ...]

    @property
    def has_query_bias(self) -> bool:
        """Whether these are weights of a DINOv3 with a query or value bias other than zero."""
        return self.layout.rotary is not False and has_query_bias(self.tensors)

    def __str__(self) -> str:
        """Layout and wrapper, for messages."""
        return f"{self.layout.name}{f', under {self.wrapper!r}' if self.wrapper else ''}"


def read_weights(path: str | Path) -> WeightFile:
    """Read a file of weights and recognise its layout.

    Raises:
        ValueError: the file cannot be read, or its layout is unknown; the message names the file.
    """
    path = Path(path)
    wrapper, state = unwrap(read_checkpoint(path), path)
    return recognise_weights(path, wrapper, state)


def recognise_weights(path: Path, wrapper: str, state: State) -> WeightFile:
    """Recognise the layout of tensors that were read from a file.

    Args:
        path: the file, for messages.
        wrapper: the key under which they stand.
        state: their names in the file, with or without the prefixes of wrapper modules, to the tensors.

    Raises:
        ValueError: the layout is unknown, or a tensor cannot be one of a ViT; the message names the file.
    """
    state, heads = _strip_prefixes(state)
    layout = next((entry for entry in LAYOUTS if entry.signature <= state.keys()), None)
    if layout is None:
        raise ValueError(
            f"{path} does not hold the weights of a ViT in a known layout ({', '.join(x.name for x in LAYOUTS)}): its "
            f"first tensors are {', '.join(list(state)[:3])}"
        )
    aside = [name for name in state if re.fullmatch(layout.aside, name)]
    kept = {name: value for name, value in state.items() if name not in aside}
    check_plain(kept, f"{path} ({layout.name})")
    try:
        return WeightFile(path, layout, wrapper, layout.rename(kept), (*heads, *aside))
    except KeyError as error:
        raise ValueError(f"{path} ({layout.name}) is incomplete: 1 missing tensor: {error.args[0]}") from error
    except (RuntimeError, TypeError) as error:  # projections whose shapes do not go together
        raise ValueError(f"{path} ({layout.name}) cannot be converted: {str(error).splitlines()[0]}") from error


def check_plain(state: State, source: str) -> None:
    """Check that tensors are dense arrays of floats.

    Args:
        state: names to tensors.
        source: where they come from, for the message.

    Raises:
        ValueError: one is not; it is named.
    """
    for name, tensor in state.items():
        if tensor.layout != torch.strided or not tensor.is_floating_point() or tensor.is_meta:
            kind = f"{tensor.layout}, {tensor.dtype}, {tensor.device}".replace("torch.", "")
            raise ValueError(f"{source} holds a tensor that is no dense array of floats: {name!r} ({kind})")


def unwrap(content: Any, path: Path) -> tuple[str, State]:
    """Return the tensors in the content of a file, and the key under which they stand, empty for a bare dictionary.

    Raises:
        ValueError: there are none; the message names the file.
    """
    if is_state(content):
        return "", content
    entries = content if isinstance(content, dict) else {}
    for wrapper in WRAPPERS:
        if is_state(entries.get(wrapper)):
            return wrapper, entries[wrapper]
    keys = ", ".join(map(str, list(entries)[:5])) or "none"
    found = f"its keys are {keys}" if isinstance(content, dict) else f"it is a {type(content).__name__}"
    raise ValueError(f"{path} holds no dictionary of tensors, neither bare nor under {', '.join(WRAPPERS)}: {found}")


def is_state(content: Any) -> bool:
    """Whether something is a dictionary of names to tensors, and not empty."""
    if not isinstance(content, dict) or not content:
        return False
    return all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())


def strip_common_prefix(state: State, prefixes: Sequence[str] = PREFIXES) -> State:
    """Return tensors without the prefixes, such as those of wrapper modules, that all of their names have."""
    while common := next((p for p in prefixes if state and all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(common): value for name, value in state.items()}
    return state


def _strip_prefixes(state: State) -> tuple[State, list[str]]:
    """Return the trunk's tensors by their plain names, and the names of the heads beside it."""
    heads: list[str] = []
    while True:
        state = strip_common_prefix(state)
        if any(name.startswith(TRUNK) for name in state):
            heads += [name for name in state if name.startswith(HEADS)]
            # any other name beside the trunk keeps its name, and is unknown later
            state = {name.removeprefix(TRUNK): value for name, value in state.items() if not name.startswith(HEADS)}
        else:
            return state, heads


def _from_hugging_face(state: State, renames: tuple[tuple[str, str], ...]) -> State:
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in (*renames, *HUGGING_FACE_RENAMES):
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return _join_qkv(renamed)


HUGGING_FACE_RENAMES = (
    (r"^embeddings\.patch_embeddings\.(projection\.)?", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^(model\.|encoder\.)?layer\.", "blocks."),  # the prefix depends on the release of transformers
    (r"attention\.attention\.(q|k|v)(uery|ey|alue)\.", r"attn.\1_proj."),
    (r"attention\.(q|k|v)_proj\.", r"attn.\1_proj."),
    (r"attention\.(o_proj|output\.dense)\.", "attn.proj."),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)


def _join_qkv(state: State) -> State:
    """Join the three projections of every block to the one that Meta and timm have.

    A projection that has no bias in any block has a bias of zeros.

    Raises:
        KeyError: the name of a weight or bias that is missing.
    """
    joined = dict(state)
    blocks = sorted(
        {match[1] for match in (re.match(r"(blocks\.\d+\.attn\.)\w_proj\.", name) for name in state) if match}
    )
    biased = {kind for kind in "qkv" for block in blocks if f"{block}{kind}_proj.bias" in state}
    for block in blocks:
        weights = [joined.pop(f"{block}{kind}_proj.weight") for kind in "qkv"]
        joined[f"{block}qkv.weight"] = torch.cat(weights)
        zeros = torch.zeros(len(weights[0]))
        biases = [joined.pop(f"{block}{kind}_proj.bias") if kind in biased else zeros for kind in "qkv"]
        joined[f"{block}qkv.bias"] = torch.cat(biases)
    return joined


def _dinov3_from_hugging_face(state: State) -> State:
    if any(".mlp.gate_proj." in name for name in state):
        mlp = (r"mlp\.gate_proj", "mlp.w1"), (r"mlp\.up_proj", "mlp.w2"), (r"mlp\.down_proj", "mlp.w3")
    else:
        mlp = (r"mlp\.up_proj", "mlp.fc1"), (r"mlp\.down_proj", "mlp.fc2")
    return _from_hugging_face(state, ((r"^embeddings\.register_tokens", "storage_tokens"), *mlp))


def _dinov2_from_hugging_face(state: State) -> State:
    return _from_hugging_face(state, ((r"mlp\.weights_in", "mlp.w12"), (r"mlp\.weights_out", "mlp.w3")))


LAYOUTS = (
    Layout("DINOv3 (Meta)", frozenset({"storage_tokens"}), PRETRAINING_ONLY, rotary=True),
    Layout(
        "DINOv3 (Hugging Face)",
        frozenset({"embeddings.register_tokens", "embeddings.patch_embeddings.weight"}),
        r"embeddings\.mask_token",
        rotary=True,
        rename=_dinov3_from_hugging_face,
    ),
    Layout(
        "DINOv2 (Hugging Face)",
        frozenset({"embeddings.position_embeddings", "embeddings.patch_embeddings.projection.weight"}),
        r"embeddings\.mask_token",
        rotary=False,
        rename=_dinov2_from_hugging_face,
    ),
    Layout("MAE (RETFound)", frozenset({"decoder_embed.weight"}), r"mask_token|decoder_.*|head\..*", rotary=False),
    Layout("iBOT (VisionFM)", frozenset({"masked_embed"}), r"masked_embed|head\..*", rotary=False),
    Layout("DINOv2 (Meta)", frozenset({"mask_token", "pos_embed"}), "mask_token", rotary=False),
    # also of fine-tuned MAE and VisionFM networks, whose encoders have timm's names
    Layout("timm", frozenset({"patch_embed.proj.weight"}), r"head\..*", rotary=None),
)
