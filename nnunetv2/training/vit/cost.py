"""What a training costs: `cost.json` beside its checkpoints, written with each of them, added to by a resumed training.

Times are wall-clock seconds. What an interrupted training did after its last checkpoint is not in them.
"""

import hashlib
import json
import platform
import statistics
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import distributed as dist
from torch.utils.flop_counter import FlopCounterMode

from nnunetv2.experiment.derive import build_on_meta
from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.experiment.plans import EXPERIMENT_KEY, read_json, write_json
from nnunetv2.experiment.versions import installed_versions
from nnunetv2.model.parameter_counts import count_parameters
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

FILE = "cost.json"
COUNTED = {"setup_seconds", "training_seconds", "validation_seconds"}
PEAKS = ("peak_allocated_bytes", "peak_reserved_bytes", "peak_resident_bytes")
# What an experiment writes into a configuration of the plans
EXPERIMENT_PART = (EXPERIMENT_KEY, "architecture", "patch_size", "batch_size")


def read_cost(folder: Path) -> dict[str, Any]:
    """Read the costs of a fold; an unreadable file counts as none.

    Args:
        folder: results folder of the fold.
    """
    try:
        cost = read_json(folder / FILE)
    except (ExperimentError, FileNotFoundError):
        return {}
    return cost if isinstance(cost, dict) and cost.keys() >= COUNTED else {}


class CostLog:
    """Counts what a training costs from the construction of its trainer on; `start` opens the file."""

    def __init__(self) -> None:
        self._created = perf_counter()
        self._folder: Path | None = None
        self._cost: dict[str, Any] = {}

    @property
    def is_started(self) -> bool:
        """Whether the training is being counted."""
        return self._folder is not None

    def start(self, trainer: nnUNetTrainer, resumed: bool) -> None:
        """Begin to count the training, set-up done.

        Args:
            trainer: an initialised trainer.
            resumed: whether to add to the costs that the training had before its interruption.
        """
        self._folder, self._device = Path(trainer.output_folder), trainer.device
        before = read_cost(self._folder) if resumed else {}
        self._cost = {"setup_seconds": 0.0, "training_seconds": 0.0, "validation_seconds": None, "total_seconds": 0.0}
        self._cost |= {"epochs": 0, "step_seconds_median": None, "step_seconds_per_epoch": []}
        self._cost |= {**dict.fromkeys(PEAKS), "checkpoint_bytes": None} | before | describe_training(trainer)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._last = perf_counter()
        self._cost["setup_seconds"] += self._last - self._created

    def add_epoch(self, step_seconds: list[float]) -> None:
        """Count an epoch.

        Args:
            step_seconds: how long its training steps took.
        """
        if self.is_started and step_seconds:
            self._cost["epochs"] += 1
            self._cost["step_seconds_per_epoch"].append(statistics.median(step_seconds))

    def write(self, checkpoint_bytes: int | None = None) -> None:
        """Write what is counted so far; nothing before `start`.

        Args:
            checkpoint_bytes: size of the checkpoint that has just been written, if one was.
        """
        if not self.is_started:
            return
        cost, now = self._cost, perf_counter()
        cost["training_seconds"] += now - self._last
        self._last = now
        if cost["step_seconds_per_epoch"]:
            cost["step_seconds_median"] = statistics.median(cost["step_seconds_per_epoch"])
        for name, value in peak_memory(self._device).items():
            cost[name] = max(cost[name] or 0, value)
        cost["checkpoint_bytes"] = checkpoint_bytes or cost["checkpoint_bytes"]
        _write(self._folder, cost)


def add_validation(folder: Path, seconds: float) -> None:
    """Add the validation to the costs of a fold, in place of an earlier one; nothing where none are written.

    Args:
        folder: results folder of the fold.
        seconds: from the first prediction to the metrics.
    """
    cost = read_cost(folder)
    if not cost:
        return
    cases = len(read_json(folder / "validation" / "summary.json")["metric_per_case"])
    _write(folder, {**cost, "validation_seconds": seconds, "validation_cases": cases})


def _write(folder: Path, cost: dict[str, Any]) -> None:
    parts = (cost["setup_seconds"], cost["training_seconds"], cost["validation_seconds"] or 0.0)
    write_json(folder / FILE, {**cost, "total_seconds": sum(parts)})


def describe_training(trainer: nnUNetTrainer) -> dict[str, Any]:
    """Return what of the costs does not change while a training runs.

    Args:
        trainer: an initialised trainer.
    """
    configuration = trainer.configuration_manager.configuration
    total, trainable = count_parameters(trainer.network)
    flops, reason = count_flops(configuration, trainer.label_manager.num_segmentation_heads)
    return {
        "device": device_name(trainer.device),
        "processes": dist.get_world_size() if trainer.is_ddp else 1,
        "parameters": total,
        "trainable_parameters": trainable,
        "flops": flops,
        "flops_unknown_because": reason,
        "versions": installed_versions(),
        "configuration_hash": configuration_hash(configuration),
    }


def count_flops(configuration: dict[str, Any], num_classes: int) -> tuple[int | None, str | None]:
    """Count the floating-point operations that the network needs to predict one image of the patch size.

    They are those of matrix products, convolutions and attention, a multiplication and an addition counted as two. The
    network runs without memory, on the device `meta`.

    Args:
        configuration: a derived configuration.
        num_classes: channels of the logits.

    Returns:
        The number and None, or None and the reason why it is not known.
    """
    try:
        network = build_on_meta(configuration, num_classes).eval()
        channels = len(configuration["normalization_schemes"])
        image = torch.empty(1, channels, *configuration["patch_size"], device="meta")
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(image)
    except Exception as error:  # a user's own network can raise anything
        return None, f"{type(error).__name__}: {' '.join(str(error).split())}"
    return counter.get_total_flops(), None


def configuration_hash(configuration: dict[str, Any]) -> str:
    """Return the SHA-1 of what an experiment wrote into a configuration of the plans, as JSON with sorted keys."""
    part = {key: configuration.get(key) for key in EXPERIMENT_PART}
    return hashlib.sha1(json.dumps(part, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def peak_memory(device: torch.device) -> dict[str, int]:
    """Return the most memory in use so far, in bytes, by its name in the file.

    That of a GPU since its statistics were reset, of this process alone; otherwise that of this process in main memory,
    without the processes that augment, since the process started; nothing on systems that do not tell.
    """
    if device.type == "cuda":
        allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        return {"peak_allocated_bytes": allocated, "peak_reserved_bytes": reserved}
    try:
        import resource  # not on Windows
    except ImportError:
        return {}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
