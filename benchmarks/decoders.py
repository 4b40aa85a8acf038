"""Measure every packaged decoder: time of a forward pass and of a training step, peak memory, parameters.

usage: python benchmarks/decoders.py [--backbone dinov3] [--size base] [--image 256] [--batch 1] [--device cpu cuda]
           [--rounds 3] [--repetitions 3] [--forms NAME ...] [--parts] [--plot FILE.png] [--set KEY=VALUE ...]

One table per device: medians, least and greatest values, and ratios to the linear probe of the same run. The network is
that of the packaged configuration from random weights, the backbone frozen (but EoMT's, which must train); `--set`
changes all configurations, such as train.precision=bfloat16. A forward pass is one in evaluation without gradients; a
training step is forward, loss, backward and a step of the optimiser.

Each decoder is measured in a process of its own, so that its peak memory is its own (CPU: the resident memory of the
process, libraries and backbone included; GPU: what PyTorch had allocated). In every round all decoders have their turn,
in every second round in reverse order: what slows the machine down for a while hits no decoder alone. On a CPU that has
other work, OMP_NUM_THREADS=1 gives steadier times: threads that wait for each other suffer most from it.

Networks of mask classification, which have a loss of their own, are measured where --forms names them: `mask2former` is
the packaged configuration `m2f`, `mask2former 2048` the same with the reference's hidden_dim; `eomt` and `pmt`.

With --parts also where the time goes within each decoder: forward by module, and forward and backward by operator.
"""

import argparse
import multiprocessing
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import torch
from decoder_parts import examine
from decoder_workload import EVERY_FORM, Task, Workload
from packaged_decoders import FORMS, read_form
from tqdm import tqdm

from dinov3.hub.families import check_backbone
from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.model.parameter_counts import count_parameters

BASELINE = "linear"
# Loaded once; the process of each measurement is a copy of the one that has loaded them.
PRELOADED = [
    "nnunetv2.experiment.derive",
    *(f"nnunetv2.model.model_{name}" for name in ("segformer", "dpt", "m2f", "eomt", "pmt")),
]


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
