"""The loop of all trainings: steps, checkpoints and evaluations."""

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dinov3.errors import ExperimentError
from dinov3.eval.segmentation.checkpoints import Checkpoints
from dinov3.eval.segmentation.config import SegmentationConfig, values_of
from dinov3.eval.segmentation.processes import seed_by, synchronise_batch_norm
from dinov3.eval.segmentation.results import Evaluation
from dinov3.eval.segmentation.schedulers import build_scheduler
from dinov3.eval.segmentation.training_log import TrainingLog

Losses = dict[str, Tensor]
TrainStep = Callable[[nn.Module, Any, nn.Module], Losses]

logger = logging.getLogger(__name__)


class TrainingLoop:
    """Trains a segmentor from the last checkpoint in its folder on.

    What a step does is a function of the weights, the optimizer's state and its number alone: a training that was
    killed and goes on computes what one that was not would have.

    Args:
        model: the segmentor, the same on all processes; it is trained in place.
        criterion: the loss that is handed to `train_step`.
        train_step: computes the losses of a batch, by name, of the model, the batch and the criterion; `loss` is
            minimised.
        config: of the training.
        accelerator: device, precision, processes and accumulation.
        folder: for checkpoints and logs.

    Raises:
        ExperimentError: checkpoints that cannot be read, or that not all processes find.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        train_step: TrainStep,
        config: SegmentationConfig,
        accelerator: Accelerator,
        folder: Path,
    ) -> None:
        self.criterion, self.train_step = criterion.to(accelerator.device), train_step
        self.config, self.accelerator, self.folder = config, accelerator, folder
        self.total = config.scheduler.total_iter
        self.segmentor = synchronise_batch_norm(model, accelerator).to(accelerator.device)
        self.parameters = [parameter for parameter in self.segmentor.parameters() if parameter.requires_grad]
        self.optimizer = make_optimizer(self.parameters, config)
        self.scheduler = build_scheduler(
            config.scheduler.type,
            optimizer=self.optimizer,
            lr=config.optimizer.lr,
            total_iter=self.total,
            constructor_kwargs=config.scheduler.constructor_kwargs,
        )
        self.checkpoints = Checkpoints(folder, config.checkpoint.keep_last)
        self.step: int = 0
        self.best: dict[str, Any] | None = None
        self._resume()
        # the scheduler stays as it is: Accelerate would step it once for each process
        self.model, self.prepared_optimizer = accelerator.prepare(self.segmentor, self.optimizer)
        self.log = TrainingLog(folder, accelerator, self.total, self.step, config.metric_to_save)
        for step, row in self.log.evaluated.items():
            self._compare_with_best(step, row)

    def run(
        self, make_loader: Callable[[int], DataLoader], evaluate: Callable[[nn.Module, int], Evaluation]
    ) -> Evaluation | None:
        """Train to the end.

        Args:
            make_loader: returns the batches of all processes that are left after a number of steps.
            evaluate: evaluates the segmentor after a number of steps; the result is the same on all processes.

        Returns:
            The last evaluation; None if a run that was killed after it has left nothing to do.

        Raises:
            ExperimentError: the loss or the gradient is not finite, or a checkpoint cannot be written.
        """
        batches = iter(self.accelerator.prepare_data_loader(make_loader(self.step)))
        evaluation = None
        self.segmentor.train()
        try:
            while True:
                # not right after the step: a run that is killed in an evaluation begins with it when it goes on
                if self._is_due(self.config.eval.eval_interval) and self.step not in self.log.evaluated:
                    evaluation = self._evaluate(evaluate)
                if self.step == self.total:
                    return evaluation
                self._train_step(batches)
                if self._is_due(self.config.checkpoint.interval):
                    self._save()
        finally:
            self.log.close()
            batches.close()

    def _is_due(self, interval: int) -> bool:
        return self.step > 0 and (self.step % interval == 0 or self.step == self.total)

    def _train_step(self, batches: Iterator[Any]) -> None:
        """Take a step of the optimizer."""
        self.step += 1
        rate, accumulation = self.optimizer.param_groups[0]["lr"], self.config.gradient_accumulation_steps
        means, data_time = {}, 0.0
        for part in range(accumulation):
            start = time.perf_counter()
            batch = next(batches)
            data_time += time.perf_counter() - start
            seed_by(self.config.seed, self.step, part, self.accelerator.process_index)
            losses = self._backward(batch)
            means = {name: means.get(name, 0) + value.detach() / accumulation for name, value in losses.items()}
        if self.step > 1:  # the reference's schedule begins a step late
            self.scheduler.step()
        self.log.add_step(self.step, {**means, "gradient_norm": self.gradient_norm}, rate, data_time)

    def _backward(self, batch: Any) -> Losses:
        """Add the gradients of a batch; after the last one of a step, update the weights."""
        with self.accelerator.accumulate(self.model):
            losses = self.train_step(self.model, batch, self.criterion)
            self.accelerator.backward(losses["loss"])
            if self.accelerator.sync_gradients:
                clip = self.config.optimizer.gradient_clip
                self.gradient_norm = self.accelerator.clip_grad_norm_(self.parameters, clip)
            self.prepared_optimizer.step()
            self.prepared_optimizer.zero_grad()
        return losses

    def _evaluate(self, evaluate: Callable[[nn.Module, int], Evaluation]) -> Evaluation:
        self.log.flush()
        evaluation = evaluate(self.segmentor, self.step)
        row = evaluation.as_json()
        if self._compare_with_best(self.step, row) and self.accelerator.is_main_process:
            self.checkpoints.save_best(self._state())
        self.log.add_evaluation(self.step, row)  # last: it says that the evaluation is complete
        return evaluation

    def _compare_with_best(self, step: int, row: dict[str, Any]) -> bool:
        """Note an evaluation that is better than all before."""
        metric = self.config.metric_to_save
        value = row["metrics"][metric]
        if value is None or (self.best is not None and value <= self.best["value"]):
            return False
        self.best = {"metric": metric, "value": value, "step": step}
        return True

    def _save(self) -> None:
        self.log.flush()
        if self.accelerator.is_main_process:
            self.checkpoints.save(self._state())

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.segmentor.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "step": self.step,
            "best": self.best,
            "config": values_of(self.config),
        }

    def _resume(self) -> None:
        state = self.checkpoints.load_last()
        step = 0 if state is None else state["step"]
        steps = self.accelerator.gather(torch.tensor([step], device=self.accelerator.device)).tolist()
        if len(set(steps)) > 1:
            raise ExperimentError(
                f"the processes find different checkpoints in {self.folder} (of steps {', '.join(map(str, steps))}): "
                "output_dir must be a folder that all machines share"
            )
        if state is not None:
            self.segmentor.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            self.step, self.best = step, state["best"]
            logger.info("The training goes on after step %d", step)


def make_optimizer(parameters: list[nn.Parameter], config: SegmentationConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, 2019, https://arxiv.org/abs/1711.05101) as configured."""
    options = config.optimizer
    return torch.optim.AdamW(
        parameters, lr=options.lr, betas=(options.beta1, options.beta2), weight_decay=options.weight_decay
    )
