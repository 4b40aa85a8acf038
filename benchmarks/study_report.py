"""Where the time of a report goes: simulated predictions of 4 experiments x 5 folds, 50 cases of 1024 x 1024 pixels.

    python benchmarks/study_report.py [--cases 50] [--side 1024] [--folds 5] [--experiments 4] [--npz]

`--cases` counts those of a fold. The second report finds the metrics of the cases in the folds' caches.
"""

import argparse
import inspect
import os
import resource
import tempfile
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from time import perf_counter
from typing import Any

from simulated_folds import DATASET, Simulation, simulate

from nnunetv2.study.members import Comparison, Member
from nnunetv2.study.report import write

PARTS = {
    "measure_all": "metrics of the cases",
    "_write_frames": "statistics and CSV files",
    "_save": "saving the figures",
    "write_page": "page",
}


def main() -> None:
    """Simulate the folds, write the report twice, and print the seconds of its parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("cases", 50), ("side", 1024), ("folds", 5), ("experiments", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--npz", action="store_true", help="with probabilities")
    args = parser.parse_args()
    experiments = {f"experiment_{i}": 0.3 + 0.05 * i for i in range(args.experiments)}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        simulation = Simulation(
            root, experiments, args.folds, args.cases * args.folds, args.side, probabilities=args.npz
        )
        simulate(simulation)
        members = [
            Member(experiment, str(fold), None, None, simulation.fold_folder(experiment, fold))
            for experiment in experiments
            for fold in range(args.folds)
        ]
        comparison = Comparison("simulated", DATASET, "2d", members, "experiment_0", None, [1, 2], 1.0, [])
        for title in ("first report", "second report, from the caches"):
            report(title, comparison, root / "report")


def report(title: str, comparison: Comparison, output: Path) -> None:
    """Write a report and print the seconds of its parts, and those of the processes that measure."""
    spent: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    for name in PARTS:
        setattr(write, name, timed(getattr(write, name), name, spent))
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), perf_counter()
    write.write_report(comparison, output)
    seconds, after = perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    children = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{title}: {seconds:.1f} s on {len(os.sched_getaffinity(0))} cores")
    for name, part in PARTS.items():
        print(f"  {part}: {spent[name]:.1f} s")
    print(f"  the rest (drawing the figures, tables): {seconds - sum(spent.values()):.1f} s")
    print(f"  processor time of the processes that measure: {children:.1f} s")
    print(f"  size of the report: {sum(path.stat().st_size for path in output.rglob('*')) / 2**20:.1f} MiB")


def timed(function: Callable[..., Any], name: str, spent: dict[str, float]) -> Callable[..., Any]:
    """Return the function, adding the seconds of its calls to `spent[name]`."""
    function = inspect.unwrap(function)

    @wraps(function)
    def measured(*args: Any, **kwargs: Any) -> Any:
        start = perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent[name] += perf_counter() - start

    return measured


if __name__ == "__main__":
    main()
