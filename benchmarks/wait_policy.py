"""Measure what it costs a training on the CPU that OpenMP's threads spin while they wait.

usage: python benchmarks/wait_policy.py [OUTPUT] [--rounds 3]

OUTPUT is a new folder for data and results; without it all is temporary. The tiny model is trained with all cores and
nnU-Net's augmentation beside it: with OpenMP's own policy, and with OMP_WAIT_POLICY=passive, which our command sets; on
the machine as it is, and beside one process that never rests. In every round all four have their turn, in every second
one in reverse order. Printed are the median seconds of an epoch, without the first of each training, and the ratio of
the two policies. Nothing else should run meanwhile.
"""

import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from statistics import median

from tiny_training import CONFIG, NUMBER, new_folder, output_parser, prepare
from tqdm import tqdm

OVERRIDES = ("train.num_epochs=3", "train.num_iterations_per_epoch=10", "train.patch_size=[96,96]")
OWN, PASSIVE = "OpenMP's own", "passive"
POLICIES = {OWN: "", PASSIVE: "passive"}  # an empty value is none to OpenMP, and the command leaves it
EPOCH_TIME = re.compile(r"Epoch time: ([\d.]+) s")


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """Keep processes beside that compute all the time."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def train(variables: dict[str, str], policy: str, results: Path) -> list[float]:
    """Train; return the seconds of the epochs, without the first."""
    command = Path(sysconfig.get_path("scripts")) / "nnUNetv2_train_vit"
    line = [str(command), NUMBER, "2d", "0", "--config", str(CONFIG), "-device", "cpu", *OVERRIDES]
    variables = {**variables, "OMP_WAIT_POLICY": POLICIES[policy], "nnUNet_results": str(results)}
    output = subprocess.run(line, env=variables, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [float(seconds) for seconds in EPOCH_TIME.findall(output)][1:]


def main() -> None:
    """Print one line per load."""
    parser = output_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    seconds: dict[tuple[str, int], list[float]] = {turn: [] for turn in product(POLICIES, (0, 1))}
    with new_folder(args.output) as output:
        variables = prepare(output)
        del variables["nnUNet_n_proc_DA"]  # as many as the command decides
        for number in tqdm(range(args.rounds), desc="rounds"):
            for policy, load in list(seconds)[:: 1 if number % 2 == 0 else -1]:
                results = output / f"results_{number}_{load}_{POLICIES[policy] or 'own'}"
                with busy_processes(load):
                    seconds[policy, load] += train(variables, policy, results)
    for load, name in enumerate(("alone", "beside a busy process")):
        own, passive = (median(seconds[policy, load]) for policy in (OWN, PASSIVE))
        print(f"{name:<24} {OWN} {own:6.2f} s   {PASSIVE} {passive:6.2f} s   ratio {own / passive:5.2f}")


if __name__ == "__main__":
    main()
