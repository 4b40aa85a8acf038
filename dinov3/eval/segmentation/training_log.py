"""What a training writes about itself: a progress bar, files of JSON lines, TensorBoard and a picture of its curves."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dinov3.errors import ExperimentError
from dinov3.eval.segmentation.json_lines import JsonLines
from dinov3.eval.segmentation.progress_figure import draw_progress

LOSSES, METRICS = "losses.jsonl", "metrics.jsonl"
INTERVAL = 20  # steps between transfers of losses from the device, each of which waits for it


class TrainingLog:
    """The log of a training, which all processes hand their losses to and the main process writes.

    `losses.jsonl` has a line for every step: the losses, their average over processes, the norm of the gradient and
    the learning rate. `metrics.jsonl` has a line for every evaluation. Both hold what one training that never stopped
    would have written, however often it was killed.

    Args:
        folder: of the training.
        accelerator: of the training.
        total: number of its steps.
        step: steps that have been taken; what the folder says about later ones is dropped.
        metric: the metric that is drawn.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, total: int, step: int, metric: str) -> None:
        self.folder, self.accelerator, self.metric = folder, accelerator, metric
        self.losses, self.metrics = JsonLines(folder / LOSSES), JsonLines(folder / METRICS)
        self.pending: list[dict[str, Any]] = []
        self.first = step + 1
        self.writes = accelerator.is_main_process
        if self.writes:
            self.losses.drop_after(step)
            self.metrics.drop_after(step)
            self.board = SummaryWriter(folder / "tensorboard", purge_step=step + 1)
        self.bar = tqdm(total=total, initial=step, desc="training", unit="step", disable=not self.writes)
        accelerator.wait_for_everyone()
        self.evaluated = {row["step"]: row for row in self.metrics.rows()}

    def add_step(self, step: int, losses: dict[str, Tensor], rate: float, data_time: float) -> None:
        """Note a step.

        Args:
            step: its number, from 1.
            losses: numbers by name, which stay on their device for a while.
            rate: the learning rate.
            data_time: seconds that were waited for images.

        Raises:
            ExperimentError: see `flush`.
        """
        self.pending.append({"step": step, "losses": losses, "learning_rate": rate, "data_time": data_time})
        self.bar.update()
        if step % INTERVAL == 0 or step == self.first:
            self.flush()

    def flush(self) -> None:
        """Write the steps noted so far; all processes call this at the same step.

        Raises:
            ExperimentError: a loss or the gradient is not finite.
        """
        if not self.pending:
            return
        notes, self.pending = self.pending, []
        names = list(notes[0]["losses"])
        values = torch.stack([torch.stack([note["losses"][name].float() for name in names]) for note in notes])
        values = self.accelerator.reduce(values, "mean").cpu()
        finite = int(values.isfinite().all(1).long().cumprod(0).sum())  # the number of steps before one that is not
        if self.writes:
            self._write([dict(zip(names, row, strict=True)) for row in values[:finite].tolist()], notes)
        if finite < len(notes):
            found = ", ".join(f"{name} {value}" for name, value in zip(names, values[finite].tolist(), strict=True))
            raise ExperimentError(
                f"the training diverged at step {notes[finite]['step']}, at a learning rate of "
                f"{notes[finite]['learning_rate']:.3g}: {found}; the checkpoint before is kept"
            )

    def _write(self, losses: list[dict[str, float]], notes: list[dict[str, Any]]) -> None:
        """Write steps whose losses are given; notes may have more steps."""
        if not losses:
            return
        kept = notes[: len(losses)]
        self.losses.append(
            {"step": note["step"], **of_step, "learning_rate": note["learning_rate"]}
            for note, of_step in zip(kept, losses, strict=True)
        )
        for note, of_step in zip(kept, losses, strict=True):
            scalars = {**of_step, "learning_rate": note["learning_rate"], "data_time": note["data_time"]}
            for name, value in scalars.items():
                self.board.add_scalar(f"training/{name}", value, note["step"])
        waited = sum(note["data_time"] for note in kept) / len(kept)
        self.bar.set_postfix_str(
            f"loss {losses[-1]['loss']:.4f}, rate {kept[-1]['learning_rate']:.2e}, data {waited:.3f} s", refresh=False
        )

    def add_evaluation(self, step: int, values: dict[str, Any]) -> None:
        """Write the figures of an evaluation."""
        self.evaluated[step] = {"step": step, **values}
        if self.writes:
            self.metrics.append([self.evaluated[step]])
            for name, value in values["metrics"].items():
                if value is not None:
                    self.board.add_scalar(f"evaluation/{name}", value, step)
            self.board.flush()
            draw_progress(self.losses.rows(), self.metrics.rows(), self.metric, self.folder / "progress.png")

    def close(self) -> None:
        """Close what is open."""
        self.bar.close()
        if self.writes:
            self.board.close()
