"""Measure every packaged decoder: time of a forward pass and of a training step, peak memory, parameters.

usage: python benchmarks/decoders.py [--backbone dinov3] [--size base] [--image 256] [--batch 1] [--device cpu cuda]
           [--rounds 3] [--repetitions 3] [--forms NAME ...] [--parts] [--plot FILE.png] [--set KEY=VALUE ...]

One table per device: medians, least and greatest values, and ratios to the linear probe of the same run. The network is
that of the packaged configuration from random weights, the backbone frozen; `--set` changes all configurations, such as
train.precision=bfloat16. A forward pass is one in evaluation without gradients; a training step is forward, loss,
backward and a step of the optimiser.

Each decoder is measured in a process of its own, so that its peak memory is its own (CPU: the resident memory of the
process, libraries and backbone included; GPU: what PyTorch had allocated). In every round all decoders have their turn,
in every second round in reverse order: what slows the machine down for a while hits no decoder alone. On a CPU that has
other work, OMP_NUM_THREADS=1 gives steadier times: threads that wait for each other suffer most from it.

Mask2Former, which has a schema and a loss of its own, is measured where --forms names it: `mask2former` is the packaged
configuration `m2f`, `mask2former 2048` the same with the reference's hidden_dim.

With --parts also where the time goes within each decoder: forward by module, and forward and backward by operator.
"""

import argparse
import multiprocessing
import os
import resource
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import torch
from packaged_decoders import FORMS, MASK2FORMER_FORMS, build_network, create_loss, read_form
from torch import Tensor, nn
from tqdm import tqdm

from dinov3.eval.segmentation.precision import autocast_for
from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.model.backbone_families import check_backbone
from nnunetv2.model.parameter_counts import count_parameters
from nnunetv2.training.vit.optimizer import create_optimizer, parameter_groups

NUM_CLASSES = 3
BASELINE = "linear"
EVERY_FORM = FORMS | MASK2FORMER_FORMS
LEAST_SHARE = 0.05  # of a decoder's time, below which a part of it is not shown
SHOWN_OPERATORS = 5
# Loaded once; the process of each measurement is a copy of the one that has loaded them.
PRELOADED = [
    "nnunetv2.experiment.derive",
    *(f"nnunetv2.model.model_{name}" for name in ("segformer", "dpt", "m2f")),
]


class Task(NamedTuple):
    """What to measure: a form on a device, with images of (batch, 3, side, side)."""

    form: str
    device: str
    overrides: tuple[str, ...]
    side: int
    batch: int
    repetitions: int


@dataclass
class Measurement:
    """Seconds of every repetition, bytes at the peak, and trainable parameters."""

    forward: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    parameters: list[float] = field(default_factory=list)

    def extend(self, other: "Measurement") -> None:
        """Add the values of another round."""
        for name, values in vars(other).items():
            getattr(self, name).extend(values)


class Column(NamedTuple):
    """A column of the table: an attribute of `Measurement`, its title, unit and decimals."""

    attribute: str
    title: str
    unit: float
    decimals: int

    def values(self, result: Measurement) -> list[float]:
        """The values of a measurement in this unit."""
        return [value / self.unit for value in getattr(result, self.attribute)]

    def cell(self, result: Measurement, baseline: Measurement | None) -> str:
        """Median, range, and ratio to the baseline's median."""
        values = self.values(result)
        middle, low, high = (f"{value:,.{self.decimals}f}" for value in (median(values), min(values), max(values)))
        spread = "" if low == high else f" ({low} to {high})"
        if baseline is None:
            return f"{middle}{spread}"
        ratio = median(values) / median(self.values(baseline))
        return f"{middle}{spread}  {ratio:>6,.{2 if ratio < 100 else 0}f}×"


COLUMNS = (
    Column("forward", "forward [ms]", 1e-3, 0),
    Column("step", "training step [ms]", 1e-3, 0),
    Column("memory", "peak memory [MiB]", 2**20, 0),
    Column("parameters", "trainable [millions]", 1e6, 3),
)


# --- in the process of a measurement --------------------------------------------------------------------------------


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


def measure(task: Task) -> Measurement:
    """Measure a decoder, each of forward pass and training step after one to warm up."""
    workload = Workload(task)
    result = Measurement()
    for work, times in ((workload.forward, result.forward), (workload.step, result.step)):
        work()
        times.extend(workload.seconds(work) for _ in range(task.repetitions))
    result.memory.append(workload.peak_memory())
    result.parameters.append(count_parameters(workload.network)[1])
    return result


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


# --- in the process of the command ----------------------------------------------------------------------------------


def _send(connection: Connection, function: Callable[[Task], Any], task: Task) -> None:
    connection.send(function(task))


def in_own_process(function: Callable[[Task], Any], task: Task) -> Any:
    """Call a function in a new process; stop the command where that fails."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, task))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        sys.exit(f"measuring {task.form} on {task.device} failed with exit code {process.exitcode}")


def measure_all(tasks: list[Task], rounds: int) -> dict[str, Measurement]:
    """Measure all tasks in every round, in every second round in reverse order."""
    results = {task.form: Measurement() for task in tasks}
    order = [task for number in range(rounds) for task in tasks[:: -1 if number % 2 else 1]]
    for task in tqdm(order, desc=tasks[0].device, leave=False):
        results[task.form].extend(in_own_process(measure, task))
    return results


def show(results: dict[str, Measurement]) -> None:
    """Print the table."""
    baseline = results.get(BASELINE)
    rows = [["decoder", *(column.title for column in COLUMNS)]]
    rows += [[form, *(column.cell(result, baseline) for column in COLUMNS)] for form, result in results.items()]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    for name, *cells in rows:
        print("   ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]))


def draw(measured: dict[str, dict[str, Measurement]], path: Path) -> None:
    """Write a picture: a row of bars per device, a panel per column of the table, medians with their ranges."""
    height = 0.6 + 0.3 * max(map(len, measured.values()))
    size = (4 * len(COLUMNS), height * len(measured))
    figure, axes = plt.subplots(len(measured), len(COLUMNS), figsize=size, squeeze=False, layout="constrained")
    for row, (device, results) in zip(axes, measured.items(), strict=True):
        for panel, column in zip(row, COLUMNS, strict=True):
            values = [column.values(result) for result in results.values()]
            middles = [median(each) for each in values]
            below = [middle - min(each) for middle, each in zip(middles, values, strict=True)]
            above = [max(each) - middle for middle, each in zip(middles, values, strict=True)]
            panel.barh(list(results), middles, xerr=[below, above], color="tab:blue", capsize=2)
            panel.set(title=f"{column.title}, {device}" if len(measured) > 1 else column.title)
            panel.invert_yaxis()
            if panel is not row[0]:
                panel.set_yticklabels([])
    figure.savefig(path, dpi=120)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="dinov3")
    parser.add_argument("--size", default="base")
    parser.add_argument("--image", type=int, default=256, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", nargs="+", choices=["cpu", "cuda"], default=devices, help="default: all there are")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repetitions", type=int, default=3, help="in each round")
    parser.add_argument("--forms", nargs="+", choices=list(EVERY_FORM), default=list(FORMS))
    parser.add_argument("--parts", action="store_true", help="also say where the time goes within each decoder")
    parser.add_argument("--plot", type=Path, help="write a bar plot to this file")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="change all configurations")
    args = parser.parse_args()
    args.overrides = (f"model.backbone={args.backbone}", f"model.backbone_size={args.size}", *args.set)
    try:
        check_backbone(args.backbone, args.size)
        for form in args.forms:
            read_form(EVERY_FORM[form], args.overrides)
    except (ExperimentError, ValueError) as error:
        parser.error(str(error))
    return args


def main() -> None:
    """Print one table per device."""
    args = parse_arguments()
    measured = {}
    for device in args.device:
        tasks = [Task(form, device, args.overrides, args.image, args.batch, args.repetitions) for form in args.forms]
        measured[device] = measure_all(tasks, args.rounds)
        print(
            f"\n{device_name(device)}: {args.backbone} {args.size}, {args.batch} × 3 × {args.image} × {args.image}, "
            f"{args.rounds} rounds of {args.repetitions}; median (least to greatest), ratio to {BASELINE}"
        )
        show(measured[device])
        for task in tqdm(tasks, desc="parts", leave=False) if args.parts else ():
            print("\n".join([f"\n{task.form}", *in_own_process(examine, task)]), flush=True)
    if args.plot:
        draw(measured, args.plot)


def device_name(device: str) -> str:
    """What the numbers were measured on; a load above 1 per core says that other work disturbed them."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return (
        f"CPU, threads: {torch.get_num_threads()}, cores: {os.cpu_count()}, load at the end: {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
