"""The network of a packaged decoder with images and labels: what `decoders.py` measures."""

import resource
import sys
from collections.abc import Callable
from time import perf_counter
from typing import NamedTuple

import torch
from packaged_decoders import FORMS, MASK_CLASSIFICATION_FORMS, build_network, create_loss, read_form

from dinov3.eval.segmentation.precision import autocast_for
from nnunetv2.training.vit.optimizer import create_optimizer, parameter_groups

NUM_CLASSES = 3
EVERY_FORM = FORMS | MASK_CLASSIFICATION_FORMS


class Task(NamedTuple):
    """What to measure: a form on a device, with images of (batch, 3, side, side)."""

    form: str
    device: str
    overrides: tuple[str, ...]
    side: int
    batch: int
    repetitions: int


class Workload:
    """A network with images and labels, and what is timed on it.

    Attributes:
        network: the network, on the task's device.
        device: the device.
    """

    def __init__(self, task: Task) -> None:
        torch.manual_seed(0)
        self.device = torch.device(task.device)
        config = read_form(EVERY_FORM[task.form], task.overrides)
        train = config.train
        self.network = build_network(config, NUM_CLASSES, batch_size=task.batch).to(self.device)
        self.images = torch.rand(task.batch, 3, task.side, task.side, device=self.device)
        self.labels = torch.randint(NUM_CLASSES, (task.batch, 1, task.side, task.side), device=self.device)
        self.loss = create_loss(config, NUM_CLASSES)
        groups = parameter_groups(self.network, train.initial_lr, train.weight_decay, train.layer_decay)
        self.optimizer = create_optimizer(train.optimizer, groups, train.momentum, train.betas)
        self.precision = train.precision
        scaled = self.device.type == "cuda" and train.precision == "float16"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)

    @torch.no_grad()
    def forward(self) -> None:
        """A forward pass as in prediction."""
        self.network.eval()(self.images)

    def step(self) -> None:
        """A step of training."""
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        with autocast_for(self.device, self.precision):
            loss = self.loss(self.network(self.images), self.labels)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], None]) -> float:
        """Wall time of some work on the device."""
        self.synchronize()
        start = perf_counter()
        work()
        self.synchronize()
        return perf_counter() - start

    def peak_memory(self) -> int:
        """Bytes at the peak since the start of this process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
