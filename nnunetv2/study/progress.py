"""How far the runs of a study are, read from nnU-Net's logs and summaries."""

import functools
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunetv2.study.runs import Run
from nnunetv2.study.state import State, state, validation_means

DIGITS = re.compile(r"\d+")
EPOCHS = re.compile(r"Epochs: (\d+)")
EPOCH_START = re.compile(r"Epoch (\d+) *$", re.MULTILINE)
EPOCH_TIME = re.compile(r"Epoch time: ([\d.]+) s")
PSEUDO_DICE = re.compile(r"Pseudo dice \[(.*)\]")
NUMBER = re.compile(r"(?<![\w.])\d[\d.]*(?:e-?\d+)?")  # not the one in `np.float32(0.5)`'s type
STATES = ("running", "interrupted", "waiting", "failed", "finished")


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        run: the run.
        state: where it stands.
        epochs_done: number of finished epochs.
        num_epochs: of the training; None: not known yet.
        epoch_seconds: duration of every epoch that the logs tell of.
        dice: mean Dice of the foreground: of the validation where the run is finished, else the last pseudo Dice.
    """

    run: Run
    state: State
    epochs_done: int
    num_epochs: int | None
    epoch_seconds: tuple[float, ...]
    dice: float | None

    def __str__(self) -> str:
        """One line of a table."""
        dice = "" if self.dice is None else f", {'' if self.state == 'finished' else 'pseudo '}Dice {self.dice:.4f}"
        epoch = f"epoch {self.epochs_done} of {self.num_epochs}" if self.num_epochs else ""
        return f"{self.state:<12} {self.run.name}" + (f": {epoch}{dice}" if epoch else "")


def read_progress(run: Run) -> Progress:
    """Return how far a run is."""
    logs = [_read_log(log, log.stat().st_size) for log in training_logs(run.folder)]
    current = state(run)
    num_epochs = next((log.num_epochs for log in reversed(logs) if log.num_epochs is not None), None)
    done = [log.epochs_done for log in logs if log.epochs_done is not None]
    is_trained = num_epochs is not None and (run.folder / "checkpoint_final.pth").is_file()
    dices = [log.dice for log in logs if log.dice is not None]
    return Progress(
        run=run,
        state=current,
        epochs_done=num_epochs if is_trained else next(reversed(done), 0),
        num_epochs=num_epochs,
        epoch_seconds=tuple(seconds for log in logs for seconds in log.epoch_seconds),
        dice=(validation_means(run) or {}).get("Dice") if current == "finished" else next(reversed(dices), None),
    )


def training_logs(fold_folder: Path) -> list[Path]:
    """The logs of a fold, one per start of its training, in the order of their dates, which nnU-Net does not pad."""
    return sorted(
        fold_folder.glob("training_log_*.txt"), key=lambda path: [int(number) for number in DIGITS.findall(path.name)]
    )


@dataclass(frozen=True)
class _Log:
    epochs_done: int | None  # None: no epoch has started
    num_epochs: int | None
    epoch_seconds: tuple[float, ...]
    dice: float | None


@functools.lru_cache(maxsize=4096)
def _read_log(path: Path, _size: int) -> _Log:
    """Read one of nnU-Net's logs; again when it has grown."""
    text = path.read_text(encoding="utf-8", errors="replace")
    num_epochs = [int(number) for number in EPOCHS.findall(text)]
    seconds = tuple(float(number) for number in EPOCH_TIME.findall(text))
    starts = [int(number) for number in EPOCH_START.findall(text)]
    classes = [float(number) for number in NUMBER.findall((PSEUDO_DICE.findall(text) or [""])[-1])]
    done = starts[0] + len(seconds) if starts else None
    return _Log(done, num_epochs[-1] if num_epochs else None, seconds, statistics.fmean(classes) if classes else None)


def headline(study: str, progress: Sequence[Progress], num_workers: int) -> str:
    """The whole study in one line.

    Args:
        study: its name.
        progress: of all runs.
        num_workers: number of trainings that run at the same time.
    """
    counts = Counter(p.state for p in progress)
    others = ", ".join(f"{counts[name]} {name}" for name in STATES[:-1] if counts[name])
    left = seconds_left(progress, num_workers)
    parts = (f"{study}: {counts['finished']} of {len(progress)} runs finished", others)
    return ", ".join(filter(None, parts)) + (f"; about {_in_words(left)} left" if left else "")


def seconds_left(progress: Sequence[Progress], num_workers: int) -> float | None:
    """Estimate how long the runs will still take, from the epochs so far; None: none has ended yet.

    Validation is not in it. A run that has not started takes as long as others of its experiment, or else of all.

    Args:
        progress: of all runs.
        num_workers: number of trainings that run at the same time.
    """
    seconds = [second for p in progress for second in p.epoch_seconds]
    epochs = [p.num_epochs for p in progress if p.num_epochs is not None]
    if not seconds or not epochs:
        return None
    total = 0.0
    for p in progress:
        if p.state in ("finished", "failed"):
            continue
        same = [other for other in progress if other.run.experiment == p.run.experiment]
        own = [second for other in same for second in other.epoch_seconds]
        length = p.num_epochs or next((other.num_epochs for other in same if other.num_epochs), max(epochs))
        total += (length - p.epochs_done) * statistics.median(own or seconds)
    return total / max(num_workers, 1)


def _in_words(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return "1 min"
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = ((days, "d"), (hours, "h"), (minutes, "min"))
    return " ".join([f"{number} {unit}" for number, unit in parts if number][:2])


def table(study: str, progress: Sequence[Progress], num_workers: int) -> Iterator[str]:
    """Yield the lines of a table of all runs, those that are running first."""
    yield headline(study, progress, num_workers)
    for name in STATES:
        yield from (f"  {p}" for p in progress if p.state == name)
