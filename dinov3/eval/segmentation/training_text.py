"""The text log of a training: what ran, on what, with which versions."""

import contextlib
import logging
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from dinov3.eval.segmentation.config import SegmentationConfig, values_of

NAME = "training.log"
PACKAGES = ("nnunet-vit", "torch", "torchvision", "timm", "peft", "accelerate", "torchmetrics", "numpy")

logger = logging.getLogger(__name__)


class ConsoleHandler(logging.Handler):
    """Prints between progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print to standard error."""
        tqdm.write(self.format(record), file=sys.stderr)


@contextlib.contextmanager
def log_to_file(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Append what the package logs to `training.log`, and print it where nothing else does; the main process alone."""
    if not accelerator.is_main_process:
        yield
        return
    package, file = logging.getLogger("dinov3"), logging.FileHandler(folder / NAME)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handlers, level = [file, *([] if package.hasHandlers() else [ConsoleHandler()])], package.level
    for handler in handlers:
        package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    except Exception as error:
        file.handle(package.makeRecord(NAME, logging.ERROR, "", 0, "The training stopped: %r", (error,), None))
        raise
    finally:
        for handler in handlers:
            package.removeHandler(handler)
            handler.close()
        package.setLevel(level)


def log_configuration(config: SegmentationConfig, model: nn.Module, accelerator: Accelerator) -> None:
    """Log the configuration, versions, the device, and the number of parameters of the model."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    parameters = list(model.parameters())
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    logger.info("Python %s, %s", platform.python_version(), versions)
    logger.info("Processes: %d, on %s (%s)", accelerator.num_processes, device.type, name)
    logger.info("Parameters: %d, trainable: %d", sum(parameter.numel() for parameter in parameters), trainable)
    logger.info("Configuration:\n%s", yaml.safe_dump(values_of(config), sort_keys=False).rstrip())
