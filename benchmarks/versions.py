"""Record features and parameter groups with the installed versions, and compare the records of two environments.

usage: python benchmarks/versions.py record FILE
       python benchmarks/versions.py compare FILE OTHER

The features are those of DINOv3 (tiny and base) with the same weights and image in every environment, in float32, under
autocast, and with the model cast to a lower precision. The parameter groups are those of layer decay, ours and, for
comparison, timm's. `compare` exits with 1 where features in float32 or under autocast, or our groups, differ.
"""

import argparse
import contextlib
import math
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from tqdm import tqdm

from nnunetv2.model.backbone import create_backbone, weights_follow
from nnunetv2.training.vit.optimizer import parameter_groups

SIZES = ("tiny", "base")
IMAGE_SIDE = 224
LAYER_DECAY, WEIGHT_DECAY = 0.75, 0.05
GROUPED = {"dinov3": "base", "dinov2": "base", "dinov2 with registers": "base_reg", "retfound": "large"}
LOW_PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}
ROUNDING = 1e-5  # relative difference of features: the order of additions in float32
AUTOCAST_ROUNDING = 1e-2  # the same in the lower precisions, whose kernels differ between releases of PyTorch


def fill(model: nn.Module) -> nn.Module:
    """Give a model the same weights in every environment: drawn by a generator of their own, in the order of names."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / math.sqrt(parameter[0].numel()))
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            else:  # norms and LayerScale
                parameter.copy_(1 + 0.1 * noise)
    return model


def build(name: str, size: str) -> nn.Module:
    """A backbone of the registry, in evaluation mode."""
    with weights_follow():
        return create_backbone(name.partition(" ")[0], size)[0].eval()


def precisions() -> dict[str, tuple[Callable[[nn.Module], nn.Module], contextlib.AbstractContextManager]]:
    """Ways to run a model: what is done to it, and the context of the forward pass."""
    ways = {"float32": (lambda model: model, contextlib.nullcontext())}
    for name, dtype in LOW_PRECISIONS.items():
        ways[f"autocast {name}"] = (lambda model: model, torch.autocast("cpu", dtype=dtype))
        ways[f"cast to {name}"] = (lambda model, dtype=dtype: model.to(dtype), contextlib.nullcontext())
    return ways


@torch.no_grad()
def record_features() -> dict[str, Tensor]:
    """Tokens (layers, tokens, embed_dim) of the last block of each quarter, per size and precision."""
    image = torch.randn(1, 3, IMAGE_SIDE, IMAGE_SIDE, generator=torch.Generator().manual_seed(1))
    features = {}
    for size in SIZES:
        for name, (change, context) in tqdm(precisions().items(), desc=size, leave=False):
            model = change(fill(build("dinov3", size)))
            layers = [len(model.blocks) * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]
            with context:
                outputs = model.forward_intermediates(
                    image.to(model.patch_embed.proj.weight.dtype),
                    layers,
                    norm=True,
                    output_fmt="NLC",
                    intermediates_only=True,
                )
            features[f"{size}, {name}"] = torch.stack(outputs)[:, 0].float()
    return features


def record_groups() -> dict[str, dict[str, list[float]]]:
    """Names of the backbone's parameters to learning rate (of an initial one of 1) and weight decay."""
    groups = {}
    for name, size in GROUPED.items():
        with torch.device("meta"):
            backbone = build(name, size)
        ours = parameter_groups(nn.ModuleDict({"backbone": backbone}), 1.0, WEIGHT_DECAY, LAYER_DECAY)
        theirs = param_groups_layer_decay(
            backbone, WEIGHT_DECAY, no_weight_decay_list=backbone.no_weight_decay(), layer_decay=LAYER_DECAY
        )
        names = {id(parameter): key for key, parameter in backbone.named_parameters()}
        for owner, found, rate in (("ours", ours, "lr"), ("timm's", theirs, "lr_scale")):
            groups[f"{owner}, {name}"] = {
                names[id(p)]: [group[rate], group["weight_decay"]] for group in found for p in group["params"]
            }
    return groups


def record() -> dict[str, Any]:
    """Everything that is compared, with the versions it was computed with."""
    versions = {"timm": timm.__version__, "torch": str(torch.__version__), "transformers": transformers.__version__}
    versions["peft"] = version("peft")
    return {"versions": versions, "features": record_features(), "groups": record_groups()}


def compare_features(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    """Print the differences; return the names of those beyond rounding."""
    beyond = []
    print(f"{'features of DINOv3':<28}{'relative difference':>20}{'largest':>12}{'from float32':>24}")
    for name, tokens in first.items():
        difference = tokens - second[name]
        relative = (difference.norm() / tokens.norm()).item()
        reference = name.partition(",")[0] + ", float32"
        errors = [((part[name] - part[reference]).norm() / part[reference].norm()).item() for part in (first, second)]
        print(f"{name:<28}{relative:>20.1e}{difference.abs().max().item():>12.1e}{errors[0]:>14.1e} / {errors[1]:.1e}")
        allowed = ROUNDING if name == reference else AUTOCAST_ROUNDING
        if "cast to" not in name and not relative < allowed:
            beyond.append(f"features, {name}")
    return beyond


def compare_groups(first: dict[str, dict], second: dict[str, dict]) -> list[str]:
    """Print which parameters are in other groups; return the names of our groups that differ."""
    beyond = []
    print("\nparameter groups of layer decay: parameters with another learning rate or weight decay")
    for name, parameters in first.items():
        differing = [key for key, group in parameters.items() if group != second[name].get(key)]
        print(f"{name:<32}{len(differing):>5} of {len(parameters)}")
        for key in ("blocks.0.attn.qkv.weight", "reg_token"):
            if key in differing:
                print(f"    {key}: rate, weight decay {parameters[key]} and {second[name][key]}")
        if differing and name.startswith("ours"):
            beyond.append(f"groups, {name}")
    return beyond


def main() -> None:
    """Record, or compare two records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("record", help="write a record").add_argument("file", type=Path)
    comparison = commands.add_parser("compare", help="compare two records")
    comparison.add_argument("files", type=Path, nargs=2, metavar="FILE")
    args = parser.parse_args()
    if args.command == "record":
        torch.save(record(), args.file)
        return
    first, second = (torch.load(file, weights_only=True) for file in args.files)
    print(f"{first['versions']}\n{second['versions']}\n")
    beyond = compare_features(first["features"], second["features"])
    beyond += compare_groups(first["groups"], second["groups"])
    if beyond:
        sys.exit("\n".join(f"DIFFERS: {name}" for name in beyond))


if __name__ == "__main__":
    main()
