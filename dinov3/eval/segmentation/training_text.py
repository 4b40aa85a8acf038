"""The text log of a training: what ran, on what, with which versions."""

import contextlib
import logging
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from torch import nn

from dinov3.eval.segmentation.config import SegmentationConfig, values_of

NAME = "training.log"
PACKAGES = ("nnunet-vit", "torch", "torchvision", "timm", "peft", "accelerate", "torchmetrics", "numpy")

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def log_to_file(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Append to `training.log` what the package logs, on the main process."""
    if not accelerator.is_main_process:
        yield
        return
    package = logging.getLogger("dinov3")
    handler, level = logging.FileHandler(folder / NAME), package.level
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    except Exception as error:
        logger.error("The training stopped: %s: %s", type(error).__name__, error)
        raise
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        handler.close()


def log_configuration(config: SegmentationConfig, model: nn.Module, accelerator: Accelerator) -> None:
    """Log the configuration, versions, the device, and the number of parameters of the model."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    parameters = list(model.parameters())
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    logger.info("Python %s, %s", platform.python_version(), versions)
    logger.info("%d processes on %s (%s)", accelerator.num_processes, device.type, name)
    logger.info("%d parameters, of which %d train", sum(parameter.numel() for parameter in parameters), trainable)
    logger.info("Configuration:\n%s", yaml.safe_dump(values_of(config), sort_keys=False).rstrip())
