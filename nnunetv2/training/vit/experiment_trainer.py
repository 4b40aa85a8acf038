"""What the trainers of all experiments share: settings from the plans, seeds, checkpoints, training cases, costs."""

import functools
import gc
import os
from dataclasses import asdict
from pathlib import Path
from time import perf_counter, time
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from dinov3.eval.segmentation.precision import autocast_for
from nnunetv2.experiment.checkpoint import remove_partial_checkpoints, write_checkpoint
from nnunetv2.experiment.derive import derive_plans
from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.experiment.plans import CONFIG_PATH_KEY, EXPERIMENT_KEY, check_name, check_results, restore
from nnunetv2.experiment.schema import config_source, load_config
from nnunetv2.experiment.versions import record_versions
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.vit.cost import CostLog, add_validation
from nnunetv2.training.vit.experiment_log import log_experiment
from nnunetv2.training.vit.optimizer import create_optimizer, parameter_groups
from nnunetv2.training.vit.schedule import EpochSchedule, IterationSchedule, create_schedule
from nnunetv2.training.vit.seeding import seed_epoch
from nnunetv2.training.vit.training_cases import choose_cases


class ExperimentTrainer(nnUNetTrainer):
    """nnU-Net's trainer, with everything that differs read from the plans: from their key `vit`.

    Built on nnU-Net's plain plans, it derives the plans of an experiment in memory.

    Args:
        plans: plans, plain or derived.
        configuration: a 2D configuration of the plans.
        fold: number of the fold, or `all`.
        dataset_json: content of the data set's `dataset.json`.
        device: where to train.
        config_path: the experiment for plain plans: a YAML file, or the name of a packaged configuration (default:
            the class's `default_config`). Derived plans carry theirs.

    Attributes:
        config: the resolved configuration.
    """

    config_class: ClassVar[type]  # of the YAML file
    stored_config_class: ClassVar[type]  # of the plans
    default_config: ClassVar[str]

    # nnU-Net's constructor reads the signature of this one and expects its own
    @functools.wraps(nnUNetTrainer.__init__)
    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int | str,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008
        config_path: str | None = None,
    ) -> None:
        continue_training = plans.setdefault("continue_training", False)
        if EXPERIMENT_KEY not in plans["configurations"].get(configuration, {}):
            plans = self._derive_in_memory(plans, configuration, dataset_json, config_path or self.default_config)
            plans["continue_training"] = continue_training
        elif config_path not in (None, plans.get(CONFIG_PATH_KEY)):  # checkpoints name it in `init_args`
            raise ExperimentError(
                f"the plans {plans['plans_name']!r} carry their experiment: config_path must be left out"
            )
        self.config = restore(self.stored_config_class, plans["configurations"][configuration])
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.my_init_kwargs["config_path"] = plans.get(CONFIG_PATH_KEY)  # saved in the checkpoints, beside the plans
        self._restoring = False
        self._cost = CostLog()
        self._step_seconds: list[float] = []
        self._iteration = 0  # of the epoch: the number of its steps so far
        self._apply_train_config()
        self.logger.update_config({EXPERIMENT_KEY: asdict(self.config)})

    @classmethod
    def _derive_in_memory(cls, plans: dict, configuration: str, dataset_json: dict, config_path: str) -> dict[str, Any]:
        config, name = load_config(cls.config_class, config_path), Path(config_path).stem
        check_name(name)
        return derive_plans(plans, configuration, dataset_json, config, name, config_source(config_path))

    def _apply_train_config(self) -> None:
        train = self.config.train
        names = ("initial_lr", "weight_decay", "num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch")
        for name in (*names, "save_every"):
            value = getattr(train, name)
            if value is not None:  # null: nnU-Net's own
                setattr(self, name, value)
        clip = self.config.gradient_clip
        self.gradient_clip = 12.0 if clip is None else clip  # nnU-Net's own is 12
        if train.precision != "float16":  # the only one whose gradients need scaling
            self.grad_scaler = None

    # --- set-up -------------------------------------------------------------------------------------------------

    def initialize(self) -> None:
        """Build network, optimiser and loss, after seeding."""
        seed_epoch(self.config.train.seed, 0, self.local_rank)
        super().initialize()
        log_experiment(self, self.plain_network, self.config)

    @property
    def plain_network(self) -> nn.Module:
        """The network without the wrappers of distributed training and compilation."""
        network = self.network.module if isinstance(self.network, DistributedDataParallel) else self.network
        return network._orig_mod if isinstance(network, OptimizedModule) else network

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, EpochSchedule]:
        """Create the optimiser and the schedule that the configuration names."""
        train = self.config.train
        optimizer = create_optimizer(train.optimizer, self._parameter_groups(), train.momentum, train.betas)
        schedule = create_schedule(
            optimizer,
            train.schedule,
            train.schedule_interval,
            self.num_epochs,
            self.num_iterations_per_epoch,
            train.warmup(self.num_epochs),
            self._backbone_warmup(),
            train.poly_exponent,
        )
        return optimizer, schedule

    def _backbone_warmup(self) -> float | None:
        """Length of the backbone's own warm-up, in epochs; None: it has none."""
        return self.config.train.backbone_warmup(self.num_epochs)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        return parameter_groups(self.plain_network, self.initial_lr, self.weight_decay)

    def _do_i_compile(self) -> bool:
        if self.config.train.compile is None or self.device.type != "cuda":
            return super()._do_i_compile()
        return self.config.train.compile

    def do_split(self) -> tuple[list[str], list[str]]:
        """Split as nnU-Net does, and choose the training cases that the configuration asks for.

        Raises:
            ExperimentError: there are not so many.
        """
        cases, validation_cases = super().do_split()
        train = self.config.train
        if train.num_training_cases is None:
            return cases, validation_cases
        chosen = choose_cases(cases, train.num_training_cases, train.seed, train.training_groups)
        self.print_to_log_file(f"Training on {len(chosen)} of {len(cases)} training cases: {', '.join(chosen)}")
        return chosen, validation_cases

    def on_train_start(self) -> None:
        """Start as nnU-Net does, unless the results folder belongs to another experiment.

        Raises:
            ExperimentError: the plans in the results folder are others.
        """
        check_results(Path(self.output_folder_base), self.plans_manager.plans)
        super().on_train_start()
        if self.local_rank == 0:
            if self.current_epoch < self.num_epochs:  # otherwise nothing is left to train
                self.print_to_log_file(record_versions(Path(self.output_folder), self.current_epoch))
            remove_partial_checkpoints(Path(self.output_folder))

    # --- training -----------------------------------------------------------------------------------------------

    def on_epoch_start(self) -> None:
        """Start an epoch as nnU-Net does; with the first one, count what the training costs."""
        if self.local_rank == 0 and not self._cost.is_started:
            self._cost.start(self, resumed=self._restoring)
        super().on_epoch_start()

    def on_train_epoch_start(self) -> None:
        """Start an epoch as nnU-Net does, after seeding."""
        seed_epoch(self.config.train.seed, self.current_epoch, self.local_rank)
        self._step_seconds, self._iteration = [], 0
        super().on_train_epoch_start()

    def train_step(self, batch: dict) -> dict:
        """Make one step of the optimiser.

        Args:
            batch: `data` (B, C, H, W) and `target` (B, 1, H, W), or (B, R, H, W) for regions; or a list of targets,
                nnU-Net's format for deep supervision.

        Returns:
            `loss`, a NumPy scalar, and its terms by name, where there are any.

        Raises:
            ExperimentError: the loss is not finite.
        """
        start = perf_counter()
        self._prepare_step()
        data, target = self._images_and_target(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss, terms = self._training_loss(data, target)
        loss_value = loss.detach().cpu().numpy()
        self._stop_unless_finite("training loss", loss_value)
        self._step(loss)
        self._iteration += 1
        self._step_seconds.append(perf_counter() - start)
        return {"loss": loss_value, **terms}

    def _prepare_step(self) -> None:
        """Set what changes with the iteration."""
        if isinstance(self.lr_scheduler, IterationSchedule):
            self.lr_scheduler.step(self.current_epoch, self._iteration)

    def _images_and_target(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor | list[torch.Tensor]]:
        target = batch["target"]
        moved = [part.to(self.device, non_blocking=True) for part in (target if isinstance(target, list) else [target])]
        return batch["data"].to(self.device, non_blocking=True), moved if isinstance(target, list) else moved[0]

    def _training_loss(
        self, data: torch.Tensor, target: torch.Tensor | list[torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of a batch, and its terms by name."""
        with autocast_for(self.device, self.config.train.precision):
            return self.loss(self.network(data), target), {}

    def _step(self, loss: torch.Tensor) -> None:
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        if self.grad_scaler is None:
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, self.gradient_clip)
            self._stop_unless_finite("gradient norm", norm.item())
            self.optimizer.step()
            return
        # the scaler leaves out steps whose gradient is not finite
        self.grad_scaler.scale(loss).backward()
        self.grad_scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(parameters, self.gradient_clip)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """End the training part of an epoch as nnU-Net does, and note how long its steps took."""
        super().on_train_epoch_end(train_outputs)
        self._cost.add_epoch(self._step_seconds)

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """End a validation epoch as nnU-Net does; stop, before a checkpoint is written, if its loss is not finite."""
        super().on_validation_epoch_end(val_outputs)
        self._stop_unless_finite("validation loss", self.logger.get_value("val_losses", step=-1))

    def on_epoch_end(self) -> None:
        """End an epoch as nnU-Net does, and free the memory of its plot."""
        super().on_epoch_end()
        gc.collect()  # the figure, 65 MB, is in a reference cycle until the garbage collector runs

    def on_train_end(self) -> None:
        """End the training as nnU-Net does, and write its costs, with checkpoints or without."""
        super().on_train_end()
        if self.local_rank == 0:
            self._cost.write()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Validate as nnU-Net does, and add the time to the costs."""
        start = perf_counter()
        super().perform_actual_validation(save_probabilities)
        if self.local_rank == 0:
            add_validation(Path(self.output_folder), perf_counter() - start)

    def _stop_unless_finite(self, name: str, value: float | np.ndarray) -> None:
        if np.isfinite(value):
            return
        half = self.config.train.precision == "float16"
        message = (
            f"the {name} is {value} in epoch {self.current_epoch}, training stops; existing checkpoints are unchanged. "
            f"Try a lower train.initial_lr (now {self.initial_lr}) or {self.config.CLIP_KEY} (now {self.gradient_clip})"
            f"{f', or {self.config.PRECISION_KEY}=bfloat16 or float32 (now float16)' if half else ''}"
        )
        self.print_to_log_file(f"ERROR: {message}")
        raise ExperimentError(message)

    # --- checkpoints --------------------------------------------------------------------------------------------

    def save_checkpoint(self, filename: str) -> None:
        """Write a checkpoint in one piece (see `write_checkpoint`), and the costs so far.

        Raises:
            ExperimentError: it cannot be written, such as on a full disk; the existing one is unchanged.
        """
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)  # nnU-Net logs or does nothing
            return
        start = time()
        write_checkpoint(Path(filename), super().save_checkpoint)
        size = os.path.getsize(filename)
        self.print_to_log_file(f"Wrote {Path(filename).name} ({size / 2**20:.1f} MiB) in {time() - start:.1f} s")
        self._cost.write(checkpoint_bytes=size)

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Load a checkpoint; the pretrained weights are not asked for again.

        Raises:
            ExperimentError: its optimizer state is of other parameter groups.
        """
        self._restoring = True
        try:
            super().load_checkpoint(filename_or_checkpoint)
        except ValueError as error:  # PyTorch's, such as after a change of how layer decay groups parameters
            raise ExperimentError(
                f"cannot load {filename_or_checkpoint} to continue or validate the training: {error}; "
                "prediction from it works"
            ) from error
