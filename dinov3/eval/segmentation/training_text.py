"""The text log of a training or an evaluation: what ran, on what, with which versions."""

import contextlib
import logging
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

PACKAGES = ("nnunet-vit", "torch", "torchvision", "timm", "peft", "accelerate", "torchmetrics", "numpy")

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def log_to_file(path: Path, accelerator: Accelerator) -> Iterator[None]:
    """Append to a file what the package logs, on the main process; the loggers above get it too."""
    if not accelerator.is_main_process:
        yield
        return
    package = logging.getLogger("dinov3")
    handler, level = logging.FileHandler(path), package.level
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    except Exception as error:
        package.propagate = False  # who catches it tells it
        logger.error("Stopped by %s: %s", type(error).__name__, error)
        raise
    finally:
        package.propagate = True
        package.removeHandler(handler)
        package.setLevel(level)


def log_circumstances(model: nn.Module, accelerator: Accelerator) -> None:
    """Log versions, the device, and the number of parameters of the model."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    parameters = list(model.parameters())
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    logger.info("Python %s, %s", platform.python_version(), versions)
    logger.info("Processes: %d, on %s (%s)", accelerator.num_processes, device.type, name)
    logger.info("Parameters: %d, trainable: %d", sum(parameter.numel() for parameter in parameters), trainable)
