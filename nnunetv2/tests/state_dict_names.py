"""What older checkpoints and plans depend on, and the file that pins it, for every model and every factory.

A checkpoint loads only where names, shapes and types of the tensors are what they were when it was written; its
optimizer goes on only where the parameters that train have the same order. Plans hold only the options of a decoder
that the user set: the others are the factory's defaults. After a deliberate change:
`python nnunetv2/tests/state_dict_names.py`, and say in the changelog what becomes of older checkpoints.
"""

import hashlib
import inspect
import itertools
import json
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinov3.eval.segmentation.models import build_segmentation_decoder
from dinov3.hub.backbones import ARCHITECTURES, create_model
from dinov3.models.lora import ATTENTION, add_lora
from dinov3.models.vision_transformer import DinoVisionTransformer
from nnunetv2.model.backbone import FAMILIES, create_backbone, weights_follow
from nnunetv2.model.model_segformer import create_segformer_model
from nnunetv2.model.segmentation_model import ViTSegmentationModel

PINNED = Path(__file__).with_suffix(".json")
REGENERATE = f"python nnunetv2/tests/{Path(__file__).name}"
Name = tuple[tuple[str, ...], str]  # the parts of a name between its dots; shape and type

# Every packaged decoder in every form that has tensors of its own, with reduced widths.
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "upernet": ("model_upernet", {"hidden_size": 32}),
    "upernet plain": ("model_upernet", {"hidden_size": 32, "use_progressive_upsample": False}),
    "upernet by its first name": ("model", {"hidden_size": 32}),
    "segformer progressive": ("model_segformer", {"decoder_hidden_size": 16}),
    "segformer bilinear": ("model_segformer", {"decoder_hidden_size": 16, "upsampling": "bilinear"}),
    "segformer full": ("model_segformer", {"decoder_hidden_size": 16, "upsampling": "full"}),
    "dpt project": ("model_dpt", {"fusion_hidden_size": 16}),
    "dpt add": ("model_dpt", {"fusion_hidden_size": 16, "readout_type": "add"}),
    "dpt ignore": ("model_dpt", {"fusion_hidden_size": 16, "readout_type": "ignore"}),
    "dpt without batch norm": ("model_dpt", {"fusion_hidden_size": 16, "use_batch_norm_in_fusion_residual": False}),
    "unetr": ("model_unetr", {"decoder_channels": [32, 16, 8, 8, 4]}),
    "unetr bilinear": ("model_unetr", {"decoder_channels": [32, 16, 8, 8, 4], "upsample_mode": "bilinear"}),
    "unetr image branch": ("model_unetr", {"decoder_channels": [32, 16, 8, 8, 4], "image_branch": True}),
    "primus": ("primus", {}),
    "primus projected": ("primus", {"embed_dim": 64}),
    "primus multiscale": ("primus", {"multiscale": True}),
    "primus multiscale projected": ("primus", {"multiscale": True, "embed_dim": 64}),
    "linear": ("model_linear", {}),
    "linear on four maps": ("model_linear", {"out_layers": [0, 1, 2, 3]}),
    "mask2former": ("model_m2f", {"hidden_dim": 32, "dim_feedforward": 64, "num_queries": 7}),
    "eomt": ("model_eomt", {"num_queries": 7}),
    "pmt": ("model_pmt", {"num_queries": 7}),
}
TINY_VIT = {"embed_dim": 96, "depth": 4, "num_heads": 3, "n_storage_tokens": 4, "layerscale_init": 1e-5}
TINY_HEAD = {"hidden_dim": 32, "num_classes": 3, "num_queries": 7, "dim_feedforward": 64}


def cases() -> dict[str, Callable[[], nn.Module]]:
    """Every model whose state is pinned: its name to what builds it (on the `meta` device, for what is large)."""
    models: dict[str, Callable[[], nn.Module]] = {}
    for family, member in FAMILIES.items():
        for size in member.sizes:
            models[f"backbone {family} {size}"] = lambda family=family, size=size: create_backbone(family, size)[0]
        models[f"lora {family} tiny"] = lambda family=family: _with_lora(family, "tiny", ["qkv", "proj", "fc1", "fc2"])
    models["backbone dinov3 tiny with query bias"] = lambda: create_backbone("dinov3", "tiny", query_bias=True)[0]
    models["lora dinov3 tiny with query bias"] = lambda: _with_lora("dinov3", "tiny", ["qkv"], query_bias=True)
    models["lora dinov3 huge_plus"] = lambda: _with_lora("dinov3", "huge_plus", ["qkv", "fc1_g", "fc1_x", "fc2"])
    models["lora dinov2 giant"] = lambda: _with_lora("dinov2", "giant", ["qkv", "fc1", "fc2"])
    models["backbone timm:vit_tiny_patch16_224"] = lambda: create_backbone("timm:vit_tiny_patch16_224", "")[0]
    for name in DECODERS:
        models[f"decoder {name}"] = lambda name=name: _without_backbone(decoder(name))
    models["lora timm:vit_tiny_patch16_224"] = lambda: _with_lora("timm:vit_tiny_patch16_224", "", ["qkv", "fc1"])
    models["whole model"] = lambda: decoder("linear")
    models["whole model with full fine-tuning"] = lambda: decoder("linear", freeze_backbone=False)
    models["whole model with lora"] = lambda: decoder("linear", use_lora=True)
    models["eomt with lora"] = lambda: decoder("eomt", use_lora=True)
    models["mask2former with lora"] = lambda: decoder("mask2former", use_lora=True)
    for name in ARCHITECTURES:
        models[f"hub {name}"] = lambda name=name: create_model(name, pretrained=False)
    models["segmentor m2f"] = lambda: segmentor("m2f")
    models["segmentor m2f with lora"] = lambda: segmentor("m2f", with_lora=True)
    models["segmentor linear"] = lambda: segmentor("linear")
    models["segmentor linear with lora"] = lambda: segmentor("linear", with_lora=True)
    return models


def factories() -> dict[str, Callable[..., nn.Module]]:
    """Every factory of the package, by its module and name; the model that takes what they hand on is one of them."""
    found = [ViTSegmentationModel, create_segformer_model]
    named = {f"{factory.__module__.rpartition('.')[2]}.{factory.__name__}": factory for factory in found}
    for module, _ in DECODERS.values():
        create = import_module(f"nnunetv2.model.{module}").create_segmentation_model  # of most a class by that name
        named[f"{module}.create_segmentation_model"] = create
    return named


def pins() -> dict[str, Callable[[], list[str]]]:
    """What is pinned: the name of a model or a factory to what gives its lines."""
    models = {name: lambda build=build: describe_model(build()) for name, build in cases().items()}
    defaults = {name: lambda factory=factory: describe_defaults(factory) for name, factory in factories().items()}
    return models | {f"defaults of {name}": lines for name, lines in defaults.items()}


def decoder(name: str, **options: Any) -> nn.Module:
    """A packaged decoder of `DECODERS` on the tiny DINOv3, for three classes."""
    module, own = DECODERS[name]
    create = import_module(f"nnunetv2.model.{module}").create_segmentation_model
    return create(num_classes=3, backbone_name="dinov3", backbone_size="tiny", **own, **options)


def segmentor(decoder_type: str, with_lora: bool = False) -> nn.Module:
    """A segmentor of `dinov3` on a tiny ViT."""
    vit: nn.Module = DinoVisionTransformer(**TINY_VIT)
    if with_lora:
        vit = add_lora(vit, 2, 4.0, 0.0, ["qkv", "proj"], within=ATTENTION)
    head = TINY_HEAD if decoder_type == "m2f" else {"num_classes": 3}
    return build_segmentation_decoder(vit, decoder_type=decoder_type, lora_enabled=with_lora, **head)


def _with_lora(family: str, size: str, targets: list[str], **options: Any) -> nn.Module:
    return add_lora(create_backbone(family, size, **options)[0], 2, 4.0, 0.0, targets)


def _without_backbone(model: nn.Module) -> nn.Module:
    del model.backbone  # the backbones have cases of their own
    return model


def describe_model(model: nn.Module) -> list[str]:
    """The lines of `describe`, and one that tells apart other orders of the parameters, and others that train."""
    order = "\n".join(f"{name} {parameter.requires_grad}" for name, parameter in model.named_parameters())
    digest = hashlib.sha256(order.encode()).hexdigest()[:16]
    return [*describe(model.state_dict()), f"order of the parameters, and which train: {digest}"]


def describe_defaults(factory: Callable[..., nn.Module]) -> list[str]:
    """One line per keyword of a factory that has a default."""
    parameters = inspect.signature(factory).parameters.values()
    return [f"{p.name}={p.default!r}" for p in parameters if p.default is not inspect.Parameter.empty]


def describe(state: dict[str, Tensor]) -> list[str]:
    """One line per tensor: name, shape, type. Repeated parts that are alike share a line, such as `blocks.{0-11}`."""
    names = [(tuple(name.split(".")), _kind(tensor)) for name, tensor in state.items()]
    for place in range(max(len(parts) for parts, _ in names)):
        names = _merged(names, place)
    return sorted(f"{'.'.join(parts)} {kind}" for parts, kind in names)


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _merged(names: list[Name], place: int) -> list[Name]:
    """Names that differ in nothing but the number at a place, in one."""
    groups: dict[tuple, list[str]] = {}
    for parts, kind in names:
        groups.setdefault((parts[:place], parts[place + 1 :], kind), []).append("".join(parts[place : place + 1]))
    merged = []
    for (start, end, kind), middles in groups.items():
        numbers = [int(middle) for middle in middles if middle.isdecimal()]
        others = [middle for middle in middles if not middle.isdecimal()]
        found = [*others, *([_ranges(numbers)] if numbers else [])]
        merged += [((*start, *([middle] if middle else []), *end), kind) for middle in found]
    return merged


def _ranges(numbers: Iterable[int]) -> str:
    runs = itertools.groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0])
    ends = [[number for _, number in run] for _, run in runs]
    text = ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in ends)
    return text if text.isdecimal() else f"{{{text}}}"


def current(name: str) -> list[str]:
    """The lines of a model or a factory as it is now."""
    with torch.device("meta"), weights_follow():
        return pins()[name]()


def read_pinned() -> dict[str, list[str]]:
    """The lines of every model and factory as they were when the file was written."""
    return json.loads(PINNED.read_text(encoding="utf-8"))


if __name__ == "__main__":
    pinned = {name: current(name) for name in pins()}
    PINNED.write_text(json.dumps(pinned, indent=0) + "\n", encoding="utf-8")
