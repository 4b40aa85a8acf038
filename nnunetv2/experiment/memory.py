"""What a training needs of memory at the very least, told before anything of it is allocated."""

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nnunetv2.experiment.control_groups import memory_limit
from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.experiment.plans import EXPERIMENT_KEY
from nnunetv2.model.parameter_counts import count_parameters

GIB = 2**30
FLOAT32_BYTES = 4
# float32 values that the optimiser keeps per trained parameter
OPTIMIZER_STATES = {"sgd": 1, "adamw": 2}


@dataclass(frozen=True)
class Machine:
    """What a training runs on.

    Attributes:
        memory: bytes of memory of a device.
        memory_of: whose memory that is, for messages.
        devices: number of devices that share a batch.
    """

    memory: int
    memory_of: str
    devices: int = 1


def describe_machine(device: torch.device, num_gpus: int) -> Machine | None:
    """Return the memory of the device that a training will use: all of it that it may use, whatever is in use now.

    Args:
        device: where to train.
        num_gpus: number of GPUs.

    Returns:
        None where the system does not tell.
    """
    if device.type == "cuda":
        smallest = min(torch.cuda.get_device_properties(i).total_memory for i in range(num_gpus))
        return Machine(smallest, "the GPU has", num_gpus)
    limit = memory_limit()
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows, and what does not know the names
        return None
    if limit is not None and limit < memory:
        return Machine(limit, "this process may use")
    return Machine(memory, "this machine has")


def check_memory(configuration: dict[str, Any], network: nn.Module, num_classes: int, machine: Machine) -> None:
    """Check that a training does not need more memory than there is in any case.

    Args:
        configuration: a derived configuration.
        network: its network, on the `meta` device.
        num_classes: channels of the logits.
        machine: what it will run on.

    Raises:
        ExperimentError: names the least need, what it is for, and what there is.
    """
    batch = least_batch_memory(configuration, network, num_classes, machine.devices)
    weights = least_weight_memory(configuration, network)
    if batch + weights <= machine.memory:
        return
    size = " × ".join(map(str, configuration["patch_size"]))
    has_backbone = "model" in configuration[EXPERIMENT_KEY]
    smaller = ", choose a smaller backbone or decoder, or freeze the backbone" if has_backbone else ""
    raise ExperimentError(
        f"this training needs at least {_in_gib(batch + weights)} of memory ({_in_gib(batch)} for a batch of "
        f"{configuration['batch_size']} images of {size}, {_in_gib(weights)} for weights, gradients and optimizer), "
        f"{machine.memory_of} {_in_gib(machine.memory)}: lower train.batch_size or train.patch_size{smaller}"
    )


def least_batch_memory(configuration: dict[str, Any], network: nn.Module, num_classes: int, devices: int = 1) -> int:
    """Return the bytes that a step of training surely keeps of its batch on one device.

    In it: the images in float32; the logits of a dense decoder and their gradient in float32, or the points at which
    the loss of mask classification compares masks; and of the backbone one map of tokens per feature layer, or per
    block where the backbone trains, at the precision of the training. Not in it, and in practice several times as much:
    the inside of the blocks, the decoder's maps, augmentation, copies.
    """
    height, width = configuration["patch_size"]
    images = configuration["batch_size"] // devices
    dense_maps = len(configuration["normalization_schemes"])
    if not hasattr(network, "forward_queries"):  # in training, masks at a quarter of the size
        dense_maps += 2 * num_classes
    per_image = height * width * dense_maps * FLOAT32_BYTES + _token_bytes(configuration, network)
    return images * per_image + _point_bytes(configuration[EXPERIMENT_KEY].get("m2f_train"))


def _point_bytes(loss: dict[str, Any] | None) -> int:
    """Bytes of the coordinates of one mask's candidate points; 0 without a loss of mask classification."""
    return 0 if loss is None else int(loss["num_points"] * loss["oversample_ratio"]) * 2 * FLOAT32_BYTES


def _token_bytes(configuration: dict[str, Any], network: nn.Module) -> int:
    """Bytes of one image's maps of tokens; 0 for a network that is no `ViTSegmentationModel`."""
    patch, embed_dim, layers = (getattr(network, name, None) for name in ("patch_size", "embed_dim", "feature_indices"))
    if not (patch and embed_dim and layers):
        return 0
    experiment = configuration[EXPERIMENT_KEY]
    frozen = experiment["model"]["freeze_backbone"] and not experiment["lora"]["enabled"]
    maps = len(layers) if frozen else layers[-1] + 1
    height, width = configuration["patch_size"]
    value_bytes = FLOAT32_BYTES if experiment["train"]["precision"] == "float32" else 2
    return maps * (height // patch) * (width // patch) * embed_dim * value_bytes


def least_weight_memory(configuration: dict[str, Any], network: nn.Module) -> int:
    """Return the bytes of the parameters, and of the gradients and optimiser states of those that train, in float32."""
    total, trainable = count_parameters(network)
    per_trained = 1 + OPTIMIZER_STATES[configuration[EXPERIMENT_KEY]["train"]["optimizer"]]
    return (total + per_trained * trainable) * FLOAT32_BYTES


def _in_gib(size: int) -> str:
    return f"{size / GIB:,.1f} GiB" if size < 100 * GIB else f"{size // GIB:,} GiB"
