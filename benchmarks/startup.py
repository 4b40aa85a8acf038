"""Measure how fast the training command answers: `--help`, and a wrong configuration, as ratios to loading torch.

usage: python benchmarks/startup.py
"""

import subprocess
import sys
from statistics import median
from time import perf_counter

COMMAND = ["-m", "nnunetv2.run.run_training_vit"]
CASES = {
    "import torch": ["-c", "import torch"],
    "empty Python": ["-c", "pass"],
    "--help": [*COMMAND, "--help"],
    "unknown key": [*COMMAND, "101", "2d", "0", "--config", "upernet", "train.epochs=3"],
}
REPETITIONS = 7


def seconds(arguments: list[str]) -> float:
    """Median wall time of a Python process with these arguments."""
    times = []
    for _ in range(REPETITIONS):
        start = perf_counter()
        subprocess.run([sys.executable, "-W", "ignore", *arguments], capture_output=True, check=False)
        times.append(perf_counter() - start)
    return median(times)


def main() -> None:
    """Print one line per case."""
    measured = {name: seconds(arguments) for name, arguments in CASES.items()}
    print(f"{'case':<14} {'median':>8} {'of torch':>9}   ({REPETITIONS} repetitions)")
    for name, value in measured.items():
        print(f"{name:<14} {value:7.2f}s {value / measured['import torch']:9.2f}")


if __name__ == "__main__":
    main()
