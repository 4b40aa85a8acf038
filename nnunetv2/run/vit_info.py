"""The command `nnUNetv2_vit_info`: what there is to choose from, what a configuration says, what a weight file fits."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from dinov3.configuration.yaml_files import find_path
from dinov3.hub.families import FAMILIES, TIMM_PREFIX
from nnunetv2.experiment.decoder_options import complete_options, packaged_decoders, read_options
from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.experiment.schema import build, find_config, packaged_configs, read_values
from nnunetv2.training.nnUNetTrainer.vit_config import ViTnnUNetConfig
from nnunetv2.training.vit.schemas import schema_of

if TYPE_CHECKING:
    from torch import nn

    from dinov3.weights.layouts import WeightFile
    from nnunetv2.model.decoder_layouts import DecoderFile

COMMAND = "nnUNetv2_vit_info"


def run_info_entry(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        arguments: the command line without the command's name; by default that of the process.
    """
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="List backbones, decoders and packaged configurations, print a configuration merged with its "
        "bases, or tell what a file of weights is.",
    )
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("weights", nargs="?", help="a file or folder of pretrained weights, or a checkpoint of nnU-Net")
    asked.add_argument("--config", help="name of a packaged configuration, or path to a YAML file: print it as YAML")
    args = parser.parse_args(arguments)
    try:
        for line in _lines(args.config, args.weights):
            print(line)
    except BrokenPipeError:  # `nnUNetv2_vit_info | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ValueError as error:
        print(f"{COMMAND}: error: {error}", file=sys.stderr)
        sys.exit(2)


def _lines(config: str | None, weights: str | None) -> Iterator[str]:
    if config is not None:
        return merged(config)
    return overview() if weights is None else describe(_existing(weights))


def _existing(name: str) -> Path:
    path = find_path(name)
    if path is None:
        raise ExperimentError(f"weight file not found: {name!r}")
    return path


def overview() -> Iterator[str]:
    """Yield the lines of three tables: backbones, decoders, packaged configurations."""
    backbones = [
        (name, ", ".join(family.sizes), str(family.patch_size), family.licence, family.weights)
        for name, family in FAMILIES.items()
    ]
    backbones.append((f"{TIMM_PREFIX}<name>", "-", "-", "its page on the hub", "timm's hub copies"))
    yield from table(("model.backbone", "model.backbone_size", "patch", "licence of the weights", "weights"), backbones)
    decoders = [
        (module, ", ".join(option.name for option in fields(read_options(module)))) for module in packaged_decoders()
    ]
    yield from table(("model.model_path", "model.decoder"), decoders)
    configs = [(name, *_config_row(name)) for name in packaged_configs()]
    yield from table(("--config", "trainer", "decoder", "backbone", "mode"), configs)


def merged(name_or_path: str) -> Iterator[str]:
    """Yield a configuration as YAML, merged with its bases.

    Raises:
        ExperimentError: there is none of this name, or it is wrong.
    """
    values = read_values(find_config(name_or_path))
    trainer = values.get("trainer")
    if not isinstance(trainer, str):
        raise ExperimentError(
            f"{name_or_path}: trainer must name the trainer class, which decides on the keys that are allowed, such as "
            f"{ViTnnUNetConfig.trainer}, found {trainer!r}"
        )
    model = build(schema_of(trainer), values, name_or_path).model
    if model is not None:
        complete_options(model.model_path, model.decoder)
    yield OmegaConf.to_yaml(values).rstrip("\n")


def _config_row(name: str) -> tuple[str, str, str, str]:
    values = read_values(find_config(name))
    config = build(schema_of(values["trainer"]), values, name)
    if config.model is None:
        return config.trainer, "U-Net of the plans", "-", "-"
    decoder = config.model.model_path.rpartition(".")[2].removeprefix("model_")
    return config.trainer, decoder, f"{config.model.backbone} {config.model.backbone_size}", config.mode


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table with aligned columns, and an empty line."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, ["-" * width for width in widths], *rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    yield ""


def describe(path: Path) -> Iterator[str]:
    """Yield what a file of weights holds, and for which backbones.

    Raises:
        ValueError: it cannot be read, or is neither the weights of a ViT, nor a decoder, nor a checkpoint of nnU-Net.
    """
    from dinov3.weights.layouts import read_weights
    from nnunetv2.experiment.checkpoint import read_fold_checkpoint
    from nnunetv2.model.decoder_layouts import UnknownLayoutError, read_decoder_weights

    try:
        yield from _describe_checkpoint(path, read_fold_checkpoint(path, COMMAND))
        return
    except ExperimentError:
        pass
    try:
        yield from _describe_decoder(read_decoder_weights(path))
        return
    except UnknownLayoutError:
        file = read_weights(path)
    count = sum(tensor.numel() for tensor in file.tensors.values())
    yield f"{path}: {file}, {len(file.tensors)} tensors, {count / 1e6:.1f} million numbers"
    yield ""
    yield from _where_it_fits(file)


def _describe_checkpoint(path: Path, checkpoint: dict) -> Iterator[str]:
    count = len(checkpoint["network_weights"])
    about = ", ".join(f"{key} {checkpoint[key]}" for key in ("trainer_name", "current_epoch") if key in checkpoint)
    yield f"{path}: checkpoint of nnU-Net ({about}), {count} tensors"
    yield f"to start another training from it: -pretrained_weights {path}"


def _describe_decoder(file: "DecoderFile") -> Iterator[str]:
    beside = "no ViT" if file.vit is None else f"a ViT of {len(file.vit.tensors)} tensors"
    yield f"{file.path}: decoder of {file}, {file.num_classes} classes, {len(file.tensors)} tensors; {beside}"
    if file.needs_original:
        yield "whether its ViT's weights are whole or differences is told beside those that it was fine-tuned from"
    yield ""
    sizes = [f"{name} {size}" for name, size, backbone in _backbones(False) if _suits(file, backbone)]
    yield f"for ViTs of {file.num_channels} channels, such as: {', '.join(sizes) or 'none of the table'}"
    options = " ".join(f"{key}={value}" for key, value in file.options.items())
    yield f"to start from it: --config {file.layout.config} {options} model.decoder_checkpoint_path={file.path}"


def _suits(file: "DecoderFile", backbone: "nn.Module") -> bool:
    from dinov3.models.timm_dinov3 import is_dinov3

    rotary = None if file.vit is None else file.vit.layout.rotary
    return backbone.embed_dim == file.num_channels and rotary in (None, is_dinov3(backbone))


def _backbones(query_bias: bool) -> Iterator[tuple[str, str, "nn.Module"]]:
    """Yield family, size and the network, without memory for its weights, of all backbones of the table."""
    import torch

    from nnunetv2.model.backbone import create_backbone, weights_follow

    for name, size in ((name, size) for name, family in FAMILIES.items() for size in family.sizes):
        with torch.device("meta"), weights_follow():
            backbone, _, _ = create_backbone(name, size, query_bias=query_bias)
        yield name, size, backbone


def _where_it_fits(file: "WeightFile") -> Iterator[str]:
    from dinov3.weights.fitting import fit_weights

    refusals: dict[str, list[str]] = {}
    fits = 0
    for name, size, backbone in _backbones(file.has_query_bias):
        try:
            report = fit_weights(file, backbone).report
        except ValueError as error:
            reason = str(error).rpartition("does not fit the backbone")[2].lstrip(": ")
            refusals.setdefault(reason, []).append(f"{name} {size}")
            continue
        fits += 1
        yield f"fits: model.backbone={name} model.backbone_size={size} model.checkpoint_path={file.path}"
        yield f"      {report}"
    if not fits:
        yield f"fits no backbone of the table ({TIMM_PREFIX}<name> was not tried):"
        yield from (f"  {', '.join(names)}: {reason}" for reason, names in refusals.items())


if __name__ == "__main__":
    run_info_entry()
