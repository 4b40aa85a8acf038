"""Where the time goes within a decoder: forward by module, and a training step by operator (`decoders.py --parts`)."""

import os
from collections.abc import Iterator
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import torch
from decoder_workload import Task, Workload
from torch import Tensor, nn

LEAST_SHARE = 0.05  # of a decoder's time, below which a part of it is not shown
SHOWN_OPERATORS = 5


class Stopwatch:
    """Time that is spent in each module of a decoder during forward passes, measured by hooks.

    Attributes:
        spent: seconds per module and call, by name, in the order of the calls; the network as a whole, which does
            nothing but decode kept features, is `""`.
    """

    def __init__(self, workload: Workload) -> None:
        self.synchronize = workload.synchronize
        self.spent: dict[str, list[float]] = {}
        self.started: dict[str, float] = {}
        for name, module in workload.network.named_modules():
            if name.partition(".")[0] != "backbone":
                module.register_forward_pre_hook(partial(self.start, name))
                module.register_forward_hook(partial(self.stop, name))

    def start(self, name: str, *_: Any) -> None:
        """Note the start of a module."""
        self.synchronize()
        self.spent.setdefault(name, [])
        self.started[name] = perf_counter()

    def stop(self, name: str, *_: Any) -> None:
        """Note its end."""
        self.synchronize()
        self.spent[name].append(perf_counter() - self.started[name])


def keep_features(network: nn.Module) -> None:
    """Let the network give its decoder the features of the first images from then on, so that only that works."""
    encode, kept = network.encode, []

    def first_features(x: Tensor) -> list[Tensor]:
        if not kept:
            kept.extend(encode(x))
        return kept

    network.encode = first_features


def called_parent(name: str, called: dict[str, Any]) -> str:
    """The next module above one that was called itself (a list of modules is not)."""
    while (name := name.rpartition(".")[0]) and name not in called:
        pass
    return name


def describe_modules(network: nn.Module, spent: dict[str, float]) -> Iterator[str]:
    """Yield a line per part of a decoder with a share worth telling, indented by depth, and name the slowest layer."""
    own = dict(spent)
    for name in filter(None, spent):
        own[called_parent(name, spent)] -= spent[name]
    modules, total = dict(network.named_modules()), spent[""]
    depths = {"": 0}
    for name in filter(None, spent):
        depths[name] = depths[called_parent(name, spent)] + 1
    slowest = max(own, key=own.get)
    for name, seconds in spent.items():
        if seconds < LEAST_SHARE * total:
            continue
        kind = type(modules[name]).__name__ if name else "decoder, forward"
        title = f"{'  ' * depths[name]}{name} {kind}".rstrip()
        outside = own[name] / total
        has_parts = seconds - own[name] > 0
        note = f"  of which {outside:.0%} between its parts" if has_parts and outside >= LEAST_SHARE else ""
        mark = "  <- slowest" if name == slowest else ""
        yield f"  {title:<64}{seconds * 1e3:9.1f} ms {seconds / total:5.0%}{note}{mark}"


def describe_operators(workload: Workload) -> Iterator[str]:
    """Yield the operators that take longest in the decoder's share of a training step."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    on_gpu = workload.device.type == "cuda"
    if on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
        workload.step()
        workload.synchronize()
    attribute = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = profile.key_averages(group_by_input_shape=True)
    total = sum(getattr(event, attribute) for event in events)
    for event in sorted(events, key=lambda event: -getattr(event, attribute))[:SHOWN_OPERATORS]:
        time = getattr(event, attribute)
        shapes = " ".join("×".join(map(str, shape)) for shape in event.input_shapes[:3] if shape)
        yield f"  {event.key.removeprefix('aten::') + ' ' + shapes:<64.64}{time / 1e3:9.1f} ms {time / total:5.0%}"


def examine(task: Task) -> list[str]:
    """Describe where a decoder spends its time, on features that were computed before."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # no lines about a GPU that is not there
    workload = Workload(task)
    keep_features(workload.network)
    workload.forward()
    workload.step()
    step = median(workload.seconds(workload.step) for _ in range(task.repetitions))
    operators = list(describe_operators(workload))
    stopwatch = Stopwatch(workload)
    for _ in range(task.repetitions):
        workload.forward()
    modules = describe_modules(workload.network, {name: median(times) for name, times in stopwatch.spent.items()})
    return [*modules, f"  {'decoder, training step, by operator':<64}{step * 1e3:9.1f} ms", *operators]
