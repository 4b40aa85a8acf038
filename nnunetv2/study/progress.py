"""How far the runs of a study are, read from nnU-Net's logs and summaries."""

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nnunetv2.study.runs import Run
from nnunetv2.study.state import State, state, validation_means
from nnunetv2.study.training_log import CURVES, read_logs

PSEUDO_DICE = CURVES["Pseudo dice"]
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
    logs = read_logs(run.folder)
    current = state(run)
    num_epochs = next((log.num_epochs for log in reversed(logs) if log.num_epochs is not None), None)
    done = [log.first_epoch + len(log.epoch_seconds) for log in logs if log.first_epoch is not None]
    is_trained = num_epochs is not None and (run.folder / "checkpoint_final.pth").is_file()
    dices = [values[PSEUDO_DICE] for log in logs for values in log.values.values() if PSEUDO_DICE in values]
    return Progress(
        run=run,
        state=current,
        epochs_done=num_epochs if is_trained else next(reversed(done), 0),
        num_epochs=num_epochs,
        epoch_seconds=tuple(seconds for log in logs for seconds in log.epoch_seconds),
        dice=(validation_means(run) or {}).get("Dice") if current == "finished" else next(reversed(dices), None),
    )


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
