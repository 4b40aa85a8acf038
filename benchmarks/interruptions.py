"""Kill a training at random moments and resume it each time; compare its end with that of an uninterrupted one.

usage: python benchmarks/interruptions.py [OUTPUT] [--kills 30] [--seed 0]

OUTPUT is a new folder for data, results and what the commands print; without it all is temporary. The command and all
its processes get SIGKILL: while they start, in the epochs, while a checkpoint is being written, while the last one is
written, and in the validation after the training. Exit code 1 if a checkpoint is corrupt, a training does not resume
at the epoch of its newest checkpoint, or the end differs.
"""

import os
import random
import re
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep, time
from typing import Any, NamedTuple

import torch
from tiny_training import CONFIG, DATASET, NUMBER, SMALL, new_folder, output_parser, prepare
from tqdm import tqdm

from dinov3.weights.reading import read_checkpoint

EPOCHS, SAVE_EVERY, ATTEMPTS = 30, 2, 3
OVERRIDES = (
    *SMALL,
    f"train.num_epochs={EPOCHS}",
    "train.num_iterations_per_epoch=6",
    "train.num_val_iterations_per_epoch=2",
    f"train.save_every={SAVE_EVERY}",
)
COMPARED = ("lrs", "train_losses", "val_losses")  # of nnU-Net's log in the checkpoint
EPOCH, DONE = re.compile(r": Epoch (\d+)"), re.compile(r": Training done")
POLL_SECONDS = 0.001
EARLY, LATE = ("start-up", "epochs", "checkpoint"), ("last checkpoint", "validation")


class Phase(NamedTuple):
    """A kind of moment: the output matches, at most `seconds` pass, and at most `size` bytes of a file are written."""

    name: str
    output: re.Pattern[str]
    seconds: float
    file: str = ""
    size: int = 0


class Start(NamedTuple):
    """What one start of the command did; epochs count from 0, and a checkpoint stores the number of done ones."""

    phase: str  # of the kill; empty if the training ran to its end
    stored_before: int
    first_epoch: int | None
    last_epoch: int | None
    interrupted_file: str  # the checkpoint that was being written
    stored_after: int
    corrupt: list[str]

    def problems(self) -> list[str]:
        """What must not be."""
        found = [f"{name} is corrupt" for name in self.corrupt]
        if self.first_epoch not in (None, self.stored_before):
            found.append(f"resumed at epoch {self.first_epoch}, stored were {self.stored_before}")
        if self.stored_after < self.stored_before:
            found.append(f"stored were {self.stored_before} epochs, then {self.stored_after}")
        return found


class Training:
    """The command on one experiment.

    Args:
        variables: the environment.
        folder: for the results and for what the command prints.
    """

    def __init__(self, variables: dict[str, str], folder: Path) -> None:
        self.folder = folder
        results = folder / "results"
        self.fold = results / DATASET / f"nnUNetTrainer_vit__nnUNetPlans_{CONFIG.stem}__2d" / "fold_0"
        self.variables = {**variables, "nnUNet_results": str(results), "PYTHONUNBUFFERED": "1"}
        self.number_of_starts = 0
        folder.mkdir(parents=True)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start the command, continuing from the last checkpoint where there is one; at the end it is dead."""
        self._start()
        try:
            yield
        finally:
            if self.process.poll() is None:
                self.kill()

    def _start(self) -> None:
        command = Path(sysconfig.get_path("scripts")) / "nnUNetv2_train_vit"
        line = [str(command), NUMBER, "2d", "0", "--config", str(CONFIG), "-device", "cpu", *OVERRIDES]
        if any(self.fold.glob("checkpoint_*.pth")):
            line.append("--c")
        self.number_of_starts += 1
        self.log = self.folder / f"start_{self.number_of_starts:02d}.txt"
        self.started_at = time()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                line, env=self.variables, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def reach(self, condition: Callable[[], Any]) -> bool:
        """Wait until a condition holds; false if the command ends before."""
        while self.process.poll() is None:
            if condition():
                return True
            sleep(POLL_SECONDS)
        return False

    def printed(self) -> str:
        """What the command has printed, of which a kill may cut the last letter."""
        return self.log.read_text(errors="replace")

    def has_printed(self, pattern: re.Pattern[str]) -> bool:
        """Whether what the command printed matches."""
        return pattern.search(self.printed()) is not None

    def written_files(self, pattern: str, size: float = 0) -> list[Path]:
        """The matching files that this start of the command has written to and that hold at least `size` bytes."""
        return [path for path in self.fold.glob(pattern) if self._is_written(path, size)]

    def _is_written(self, path: Path, size: float) -> bool:
        try:
            status = path.stat()
        except FileNotFoundError:  # temporary files can vanish at any time
            return False
        return status.st_mtime > self.started_at and status.st_size >= size

    def kill(self) -> None:
        """End all processes of the command, none of which can do anything about it."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def finish(self) -> None:
        """Wait until the command has ended.

        Raises:
            SystemExit: it ended with an error.
        """
        if self.process.wait() != 0:
            sys.exit(f"{self.printed()[-3000:]}\nthe training failed, see above")

    def checkpoints(self) -> dict[str, int | None]:
        """The epochs that the checkpoints store; None where a file cannot be loaded."""
        return {path.name: stored_epochs(path) for path in sorted(self.fold.glob("checkpoint_*.pth"))}

    def newest(self) -> int:
        """The epochs that the newest complete checkpoint stores."""
        return max((epochs for epochs in self.checkpoints().values() if epochs is not None), default=0)

    def run(self, phase: Phase | None, share: float = 0.0) -> Start:
        """Start the command and kill it when a share (0 to 1) of a phase is over; without a phase let it end.

        Raises:
            SystemExit: the command ended with an error.
        """
        before = self.newest()
        with self.running():
            is_killed = phase is not None and self._reach_moment(phase, share)
            if not is_killed:
                self.finish()
        epochs = [int(epoch) for epoch in EPOCH.findall(self.printed())]
        first, last = (epochs[0], epochs[-1]) if epochs else (None, None)
        cut = [path.name.partition(".pth")[0] + ".pth" for path in self.written_files("checkpoint_*.pth.*.tmp")]
        corrupt = [name for name, stored in self.checkpoints().items() if stored is None]
        name = phase.name if is_killed else ""
        return Start(name, before, first, last, cut[0] if cut else "", self.newest(), corrupt)

    def _reach_moment(self, phase: Phase, share: float) -> bool:
        if not self.reach(lambda: self.has_printed(phase.output)):
            return False
        moment = monotonic() + share * phase.seconds
        return self.reach(lambda: monotonic() >= moment) and (
            not phase.file or self.reach(lambda: self.written_files(phase.file, share * phase.size))
        )


def stored_epochs(path: Path) -> int | None:
    """The number of epochs that a checkpoint stores; None if it cannot be loaded."""
    try:
        return read_checkpoint(path)["current_epoch"]
    except ValueError:
        return None


def measure_phases(straight: Training) -> dict[str, Phase]:
    """Run a training without interruption and return the phases of the command, with their lengths."""
    begin = monotonic()
    times = []
    with straight.running():
        for pattern in (EPOCH, DONE):
            straight.reach(lambda pattern=pattern: straight.has_printed(pattern))
            times.append(monotonic() - begin)
        straight.finish()
    start, end, validation = times[0], times[1], monotonic() - begin - times[1]
    epoch = (end - start) / EPOCHS
    print(f"uninterrupted: start {start:.1f} s, {EPOCHS} epochs of {epoch:.1f} s, validation {validation:.1f} s")
    anything = re.compile("")
    size = (straight.fold / "checkpoint_final.pth").stat().st_size
    phases = (
        Phase("start-up", anything, start),
        Phase("epochs", EPOCH, 2 * SAVE_EVERY * epoch),
        Phase("checkpoint", EPOCH, 2 * SAVE_EVERY * epoch, "checkpoint_*.pth.*.tmp", size),
        Phase("last checkpoint", anything, 0.0, "checkpoint_final.pth.*.tmp", size),
        Phase("validation", DONE, validation / 2),
    )
    return {phase.name: phase for phase in phases}


def interrupt(training: Training, phases: dict[str, Phase], kills: int, seed: int) -> list[Start]:
    """Kill and resume a training; a fifth of the kills come when the epochs are over.

    Returns:
        Its starts; the last one ran to its end.
    """
    draw = random.Random(seed)
    late = [LATE[i % len(LATE)] for i in range(kills // 5)]
    early = [EARLY[i % len(EARLY)] for i in range(kills - len(late))]
    draw.shuffle(early)
    starts = []
    for name in tqdm([*early, *late], desc="kills", unit="kill"):
        for _ in range(ATTEMPTS):  # the command can end before the moment comes
            is_over = training.newest() == EPOCHS and phases[name].output is EPOCH
            phase = phases[draw.choice(LATE) if is_over else name]
            starts.append(training.run(phase, draw.random()))
            if starts[-1].phase:
                break
    return [*starts, training.run(None)]


def differences(straight: Training, interrupted: Training) -> list[str]:
    """What differs between the ends of two trainings."""
    first, second = (read_checkpoint(training.fold / "checkpoint_final.pth") for training in (straight, interrupted))
    found = [f"the {key} differ" for key in COMPARED if first["logging"][key] != second["logging"][key]]
    weights = second["network_weights"]
    if not all(torch.equal(value, weights[name]) for name, value in first["network_weights"].items()):
        found.append("the weights differ")
    return found


def report(starts: list[Start], kills: int) -> list[str]:
    """Print a line per start and a summary; return what must not be."""
    print(f"\n{'killed in':<16} {'cut file':<22} {'stored before':>13} {'first epoch':>11} {'last':>5} {'stored':>7}")
    for start in starts:
        shown = ("-" if epoch is None else str(epoch) for epoch in (start.first_epoch, start.last_epoch))
        print(
            f"{start.phase or '(ran to its end)':<16} {start.interrupted_file or '-':<22} {start.stored_before:>13} "
            "{:>11} {:>5} ".format(*shown)
            + f"{start.stored_after:>7}"
        )
    killed = [start for start in starts if start.phase]
    cut = [start for start in killed if start.interrupted_file]
    repeated = [start.last_epoch - start.stored_after for start in killed if start.last_epoch is not None]
    print(f"\nkills: {len(killed)}, of them while a checkpoint was being written: {len(cut)}")
    print(f"starts after a kill: {len(starts) - 1}, of them seen in an epoch: {count_seen(starts)}")
    print(f"finished epochs that a kill took back (save_every={SAVE_EVERY}): at most {max(repeated, default=0)}")
    problems = [problem for start in starts for problem in start.problems()]
    if len(killed) != kills or starts[-1].stored_after != EPOCHS:
        problems.append(f"{len(killed)} kills, wanted: {kills}; {starts[-1].stored_after} epochs, wanted: {EPOCHS}")
    if len(cut) < kills // 5:
        problems.append(f"only {len(cut)} kills met a checkpoint that was being written")
    return problems


def count_seen(starts: list[Start]) -> int:
    """The number of resumed starts that came as far as an epoch, so that where they resumed could be seen."""
    return sum(start.first_epoch is not None for start in starts[1:])


def conduct(output: Path, kills: int, seed: int) -> list[str]:
    """Train straight and with interruptions, print what was seen, and return what must not be."""
    variables = prepare(output)
    straight, interrupted = (Training(variables, output / name) for name in ("straight", "interrupted"))
    starts = interrupt(interrupted, measure_phases(straight), kills, seed)
    problems = [*report(starts, kills), *differences(straight, interrupted)]
    left = sorted(path.name for path in interrupted.fold.glob("*.tmp"))
    return [*problems, *(f"{name} is left over" for name in left)]


def main() -> None:
    """Read the arguments, conduct the benchmark and print the verdict."""
    parser = output_parser(__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    # a session of its own keeps the command alive when this process is asked to end
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    with new_folder(args.output) as output:
        problems = conduct(output, args.kills, args.seed)
    print(f"{', '.join(COMPARED)} and weights at the end are compared with those of the uninterrupted training")
    print("\n".join(["PROBLEMS", *problems]) if problems else "all resumed, no checkpoint corrupt, equal at the end")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
