"""What every training command does: configuration → derived plans → nnU-Net's own `run_training`.

Torch is loaded inside the functions: a wrong configuration is told at once.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinov3.configuration.schema import refuse
from dinov3.configuration.yaml_files import find_file
from nnunetv2.experiment.dataset import (
    check_fold,
    find_dataset,
    preprocessed_folder,
    read_base_plans,
    read_dataset_json,
)
from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.experiment.plans import (
    EXPERIMENT_KEY,
    check_configuration,
    check_experiment,
    check_results,
    differences_from,
    listed,
    read_plans,
    resolve,
    write_new_plans,
)
from nnunetv2.experiment.schema import build, config_source, find_config, read_values
from nnunetv2.paths import nnUNet_results
from nnunetv2.run.arguments import TrainingArguments
from nnunetv2.run.cpu_cores import check_process_counts
from nnunetv2.run.devices import find_device
from nnunetv2.training.vit.schemas import schema_of
from nnunetv2.training.vit.training_cases import choose_cases, training_cases_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Training:
    """A training of which everything is checked and nothing is written.

    Attributes:
        dataset: full name of the data set.
        folder: of its plans and preprocessed cases.
        dataset_json: its `dataset.json`.
        configuration: the configuration of the plans that is trained.
        fold: number of the fold, or `all`.
        plans: those of the experiment.
        trainer: name of the trainer class.
        device: where to train.
    """

    dataset: str
    folder: Path
    dataset_json: dict[str, Any]
    configuration: str
    fold: int | str
    plans: dict[str, Any]
    trainer: str
    device: "torch.device"

    @property
    def results(self) -> Path:
        """The results folder of the experiment."""
        name = f"{self.trainer}__{self.plans['plans_name']}__{self.configuration}"
        return Path(str(nnUNet_results)) / self.dataset / name


def train(args: TrainingArguments, threads: int) -> None:
    """Check everything, write the derived plans where they are not there yet, and hand over to nnU-Net.

    Args:
        args: the command line.
        threads: number of PyTorch's threads.

    Raises:
        ExperimentError: something is wrong that the user can put right.
    """
    training = prepare(args, threads)
    with initial_checkpoint(args, training) as pretrained_weights:
        write_new_plans(training.folder, training.plans)

        from nnunetv2.run.run_training import run_training

        run_training(
            training.dataset, training.configuration, training.fold, training.trainer, training.plans["plans_name"],
            pretrained_weights, args.num_gpus, args.npz, args.c, args.val, args.disable_checkpointing, args.val_best,
            training.device,
        )  # fmt: skip


def prepare(args: TrainingArguments, threads: int) -> Training:
    """Check everything that a training needs, and derive its plans, or read those of one that is resumed.

    Args:
        args: the command line.
        threads: number of PyTorch's threads.

    Raises:
        ExperimentError: something is wrong that the user can put right.
    """
    check_process_counts()
    args.check()
    config = read_experiment(args)
    dataset = find_dataset(args.dataset_name_or_id)
    folder = preprocessed_folder(dataset)
    dataset_json = read_dataset_json(folder)
    fold = check_fold(folder, args.fold)
    plans = base_plans(args, folder) if args.starts_training else stored_plans(args, config, folder, dataset_json)
    device = prepare_device(args.device, args.num_gpus, threads)
    if args.starts_training:
        plans = derive(args, config, plans, dataset_json, device)
        check_training_cases(folder, resolve(plans, args.configuration), fold)
    trainer = args.trainer_class_name or resolve(plans, args.configuration)[EXPERIMENT_KEY]["trainer"]
    training = Training(dataset, folder, dataset_json, args.configuration, fold, plans, trainer, device)
    check_results(training.results, plans)
    if not args.starts_training:
        check_checkpoint(training.results / f"fold_{fold}", args)
    return training


def read_experiment(args: TrainingArguments) -> Any:
    """Read and check the configuration that `--config` names.

    Returns:
        The configuration object; None where `--name` alone resumes an experiment.

    Raises:
        ExperimentError: it is wrong.
    """
    if args.config is None:
        return None
    values = read_values(find_config(args.config), args.overrides)
    if not isinstance(values.get("trainer", ""), str):
        raise ExperimentError(f"{args.config}: trainer must be str, found {values['trainer']!r}")
    trainer = args.trainer_class_name or values.get("trainer") or args.default_trainer
    config = build(schema_of(trainer), values, args.config)
    config.trainer = trainer  # the plans name the one that trains, so that `--c` finds it
    if args.pretrained_weights is not None:
        config.start_from_checkpoint()
    if args.starts_training:
        refuse(config.weight_problems(), args.config)
    return config


def stored_plans(args: TrainingArguments, config: Any, folder: Path, dataset_json: dict[str, Any]) -> dict[str, Any]:
    """Read the plans of the experiment that `--c` resumes or `--val` validates; its pretrained weights are not needed.

    Raises:
        ExperimentError: there are none, they are not an experiment's, or not the one that `--config` describes.
    """
    name = args.experiment_name
    plans = read_plans(folder, f"{args.plans_identifier}_{name}")
    check_configuration(plans, args.configuration)
    check_experiment(plans, args.configuration)
    differences: list[str] = []
    if config is not None:
        differences += differences_from(plans, args.configuration, dataset_json, config)
    if differences:
        raise ExperimentError(
            f"the experiment {name!r} was trained with another configuration (then → now):\n{listed(differences)}\n"
            f"to resume it, pass --name {name} without --config"
        )
    return plans


def base_plans(args: TrainingArguments, folder: Path) -> dict[str, Any]:
    """Read the plans that `-p` names, to derive from.

    Raises:
        ExperimentError: there are none, their cases are not preprocessed, or they are an experiment's own.
    """
    plans = read_base_plans(folder, args.plans_identifier, args.configuration)
    if EXPERIMENT_KEY in resolve(plans, args.configuration):
        raise ExperimentError(
            f"-p {args.plans_identifier}: these plans belong to an experiment; pass the original nnU-Net plans"
        )
    return plans


def derive(
    args: TrainingArguments, config: Any, plans: dict[str, Any], dataset_json: dict, device: "torch.device | None"
) -> dict[str, Any]:
    """Derive the plans of a new training; check that there is memory for it, and that its pretrained weights fit.

    Args:
        args: the command line.
        config: the checked configuration.
        plans: those to derive from.
        dataset_json: the data set's `dataset.json`.
        device: where to train; None: on another machine, whose memory is not checked.

    Raises:
        ExperimentError: the network cannot be built or trained here, or the weights cannot be had or do not fit.
    """
    from nnunetv2.experiment.derive import build_on_meta, count_classes, derive_plans
    from nnunetv2.experiment.memory import describe_machine
    from nnunetv2.experiment.pretrained_weights import PretrainedWeights

    name, source = args.experiment_name, config_source(args.config)
    machine = None if device is None else describe_machine(device, args.num_gpus)
    weights = PretrainedWeights(config.model)
    derived = derive_plans(plans, args.configuration, dataset_json, config, name, source, machine, weights)
    chosen = resolve(derived, args.configuration)
    weights.check_fit(chosen)
    if weights.decoder_file is not None:
        weights.check_decoder_fit(build_on_meta(chosen, count_classes(derived, dataset_json)))
    return derived


def check_training_cases(folder: Path, configuration: dict[str, Any], fold: int | str) -> None:
    """Check that the fold has the training cases that a derived configuration asks for.

    Raises:
        ExperimentError: there are too few, also for a split, or a case has no group.
    """
    train = configuration[EXPERIMENT_KEY]["train"]
    cases = training_cases_of(folder, configuration["data_identifier"], fold)
    if train["num_training_cases"] is not None:
        choose_cases(cases, train["num_training_cases"], train["seed"], train["training_groups"])


@contextlib.contextmanager
def initial_checkpoint(args: TrainingArguments, training: Training) -> Iterator[str | None]:
    """Check the checkpoint of `-pretrained_weights`, if given, and give the path of a copy that nnU-Net can read.

    Raises:
        ExperimentError: it cannot be read, or does not fit the network that the plans describe.
    """
    if args.pretrained_weights is None:
        yield None
        return
    from nnunetv2.experiment.checkpoint import check_pretrained_checkpoint, temporary_checkpoint
    from nnunetv2.experiment.derive import build_on_meta, count_classes

    path = find_file(args.pretrained_weights)
    num_classes = count_classes(training.plans, training.dataset_json)
    network = build_on_meta(resolve(training.plans, training.configuration), num_classes)
    with temporary_checkpoint(path, check_pretrained_checkpoint(path, network)) as copy:
        yield copy


def prepare_device(name: str, num_gpus: int, threads: int) -> "torch.device":
    """Return the device, with PyTorch's number of threads set; on GPUs as nnU-Net's own command sets it.

    Raises:
        ExperimentError: this machine has no such device, or too few GPUs.
    """
    import torch

    device = find_device(name, num_gpus)
    torch.set_num_threads(threads)
    if name == "cuda":
        torch.set_num_interop_threads(1)
    return device


def check_checkpoint(folder: Path, args: TrainingArguments) -> None:
    """Check that there is a training to resume or to validate.

    Raises:
        ExperimentError: names the checkpoint that is missing or damaged.
    """
    from nnunetv2.experiment.checkpoint import read_fold_checkpoint

    names = ["checkpoint_final.pth"] if args.val else [f"checkpoint_{n}.pth" for n in ("final", "latest", "best")]
    flag = "--val" if args.val else "--c"
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise ExperimentError(f"{flag}: no {' or '.join(names)} in {folder}")
    read_fold_checkpoint(found[0], flag)
    if args.val_best:
        read_fold_checkpoint(folder / "checkpoint_best.pth", "--val_best")
