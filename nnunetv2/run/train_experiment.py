"""What every training command does: configuration → derived plans → nnU-Net's own `run_training`.

Torch is loaded inside the functions: `--help` and a wrong configuration are answered at once.
"""

import argparse
import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

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
    check_name,
    check_results,
    differences_from,
    listed,
    read_plans,
    resolve,
    write_new_plans,
)
from nnunetv2.experiment.schema import (
    build,
    config_source,
    find_config,
    find_file,
    packaged_configs,
    read_values,
    refuse,
)
from nnunetv2.paths import nnUNet_results
from nnunetv2.run.arguments import DEVICES
from nnunetv2.run.cpu_cores import share_cores
from nnunetv2.run.process_counts import check_process_counts
from nnunetv2.training.nnUNetTrainer.m2f_config import M2FnnUNetConfig
from nnunetv2.training.nnUNetTrainer.segformer_config import SegFormernnUNetConfig
from nnunetv2.training.nnUNetTrainer.vit_config import ViTnnUNetConfig

if TYPE_CHECKING:
    import torch

# What nnU-Net's own reading and writing ends in on a full, a read-only or a foreign disk
DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.ENAMETOOLONG),
)
SCHEMAS = (ViTnnUNetConfig, SegFormernnUNetConfig, M2FnnUNetConfig)
# As nnU-Net sets them when it is run as a script. They must be set before NumPy and torch are loaded.
SINGLE_THREAD_VARIABLES = ("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")


def run_command(command: str, args: argparse.Namespace) -> None:
    """Train; end with one sentence and exit code 2 on what the user can put right.

    Args:
        command: name of the command, for the message.
        args: arguments as `arguments.training_parser` reads them.
    """
    threads = share_cores() if args.device == "cpu" else 1
    os.environ["OMP_NUM_THREADS"] = str(threads)
    for variable in SINGLE_THREAD_VARIABLES:
        os.environ[variable] = "1"
    try:
        train(args, threads)
    except ExperimentError as error:
        _refuse(command, str(error))
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        file = error.filename or "a file"
        _refuse(command, f"cannot read or write {file}: {error.strerror}; checkpoints are as they were")
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0]
        _refuse(command, f"out of memory: {reason}; lower train.batch_size or train.patch_size, or shrink the decoder")


def _is_out_of_memory(error: Exception) -> bool:
    # torch.OutOfMemoryError of a GPU; on the CPU PyTorch has no class for it
    is_named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return is_named or "can't allocate memory" in str(error)


def _refuse(command: str, message: str) -> NoReturn:
    print(f"{command}: error: {message}", file=sys.stderr)
    sys.exit(2)


def train(args: argparse.Namespace, threads: int) -> None:
    """Check everything, write the derived plans where they are not there yet, and hand over to nnU-Net.

    Args:
        args: arguments as `arguments.training_parser` reads them.
        threads: number of PyTorch's threads.

    Raises:
        ExperimentError: something is wrong that the user can put right.
    """
    check_process_counts()
    check_flags(args)
    config = read_experiment(args)
    dataset = find_dataset(args.dataset_name_or_id)
    folder = preprocessed_folder(dataset)
    dataset_json = read_dataset_json(folder)
    fold = check_fold(folder, args.fold)
    is_new = not (args.c or args.val)
    plans = base_plans(args, folder) if is_new else stored_plans(args, config, folder)
    device = prepare_device(args.device, args.num_gpus, threads)
    if is_new:
        plans = derive(args, config, plans, dataset_json, device)
    trainer = args.trainer_class_name or resolve(plans, args.configuration)[EXPERIMENT_KEY]["trainer"]
    results = Path(str(nnUNet_results)) / dataset / f"{trainer}__{plans['plans_name']}__{args.configuration}"
    check_results(results, plans)
    if not is_new:
        check_checkpoint(results / f"fold_{fold}", args)
    with former_training(args, plans, dataset_json) as pretrained_weights:
        write_new_plans(folder, plans)

        from nnunetv2.run.run_training import run_training

        run_training(
            dataset, args.configuration, fold, trainer, plans["plans_name"], pretrained_weights, args.num_gpus,
            args.npz, args.c, args.val, args.disable_checkpointing, args.val_best, device,
        )  # fmt: skip


def check_flags(args: argparse.Namespace) -> None:
    """Check flags against each other.

    Raises:
        ExperimentError: names the flags that exclude each other, or a value that cannot be.
    """
    for first, second in (
        ("--c", "--val"),
        ("--val_best", "--disable_checkpointing"),
        ("--c", "-pretrained_weights"),
        ("--val", "-pretrained_weights"),
    ):
        if getattr(args, first.lstrip("-")) and getattr(args, second.lstrip("-")):
            raise ExperimentError(f"{first} and {second} exclude each other")
    if args.pretrained_weights is not None and find_file(args.pretrained_weights) is None:
        raise ExperimentError(f"-pretrained_weights: no such file: {args.pretrained_weights!r}")
    if "/" in args.plans_identifier:
        raise ExperimentError(f"-p takes the name of plans, such as nnUNetPlans, found {args.plans_identifier!r}")
    if args.device not in DEVICES:
        raise ExperimentError(f"-device {args.device!r} is unknown; allowed: {', '.join(DEVICES)}")
    if args.num_gpus < 1:
        raise ExperimentError(f"-num_gpus must be at least 1, found {args.num_gpus}")
    if args.num_gpus > 1 and args.device != "cuda":
        raise ExperimentError(
            f"-num_gpus {args.num_gpus} does not go with -device {args.device}; more than 1 needs cuda"
        )


def read_experiment(args: argparse.Namespace) -> Any:
    """Read and check the configuration that `--config` names.

    Returns:
        The configuration object; None where `--name` alone continues an experiment.

    Raises:
        ExperimentError: there is no configuration where one is needed, or it is wrong.
    """
    if args.name is not None:
        check_name(args.name)
    if args.config is None:
        if args.name is None and (args.c or args.val):
            raise ExperimentError(f"{'--c' if args.c else '--val'} needs --name NAME (or --config) of the experiment")
        if args.name is None or not (args.c or args.val):
            names = ", ".join(packaged_configs())
            raise ExperimentError(f"a new training needs --config: a path to a YAML file, or one of {names}")
        if args.overrides:
            raise ExperimentError(
                f"override {args.overrides[0]!r} has no effect: the experiment {args.name!r} already exists "
                "and cannot be changed"
            )
        return None
    path = find_config(args.config)
    if args.name is None:
        check_name(path.stem)
    values = read_values(path, args.overrides)
    if not isinstance(values.get("trainer", ""), str):
        raise ExperimentError(f"{args.config}: trainer must be str, found {values['trainer']!r}")
    trainer = args.trainer_class_name or values.get("trainer") or args.default_trainer
    config = build(schema_of(trainer), values, args.config)
    config.trainer = trainer  # the plans name the one that trains, so that `--c` finds it
    if args.pretrained_weights is not None:
        config.model.pretrained = False  # the hub's weights would be overwritten at once
    if not (args.c or args.val):
        refuse(config.model.weight_problems(), args.config)
    return config


def schema_of(trainer: str) -> type:
    """Return the configuration schema of a trainer: of ours by name, of the user's own by importing it.

    Raises:
        ExperimentError: there is no such trainer, or it is not made for experiments.
    """
    known = {name: schema for schema in SCHEMAS for name in schema.TRAINERS}
    if trainer in known:
        return known[trainer]
    schema = None
    if trainer.isidentifier():
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

        with contextlib.suppress(RuntimeError):
            schema = getattr(recursive_find_trainer_class_by_name(trainer), "config_class", None)
    if schema is None:
        raise ExperimentError(
            f"trainer {trainer!r} does not support ViT experiments; allowed: {', '.join(known)}, or a subclass"
        )
    return schema


def stored_plans(args: argparse.Namespace, config: Any, folder: Path) -> dict[str, Any]:
    """Read the plans of the experiment that `--c` or `--val` goes on with; its pretrained weights are not needed.

    Raises:
        ExperimentError: there are none, they are not an experiment's, or not the one that `--config` describes.
    """
    name = experiment_name(args)
    plans = read_plans(folder, f"{args.plans_identifier}_{name}")
    check_configuration(plans, args.configuration)
    stored = resolve(plans, args.configuration).get(EXPERIMENT_KEY)
    if stored is None:
        raise ExperimentError(f"the plans {plans['plans_name']!r} are not those of an experiment")
    differences: list[str] = []
    if config is not None:
        differences += differences_from(plans, args.configuration, read_dataset_json(folder), config)
    if differences:
        raise ExperimentError(
            f"the experiment {name!r} was trained with another configuration (then → now):\n{listed(differences)}\n"
            f"to resume it, pass --name {name} without --config"
        )
    return plans


def experiment_name(args: argparse.Namespace) -> str:
    """The experiment's name: `--name`, or the file name of the configuration."""
    return args.name or find_config(args.config).stem


def base_plans(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
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
    args: argparse.Namespace, config: Any, plans: dict[str, Any], dataset_json: dict, device: "torch.device"
) -> dict[str, Any]:
    """Derive the plans of a new training; check that there is memory for it, and that its pretrained weights fit.

    Raises:
        ExperimentError: the network cannot be built or trained here, or the weights cannot be had or do not fit.
    """
    from nnunetv2.experiment.derive import check_pretrained_weights, derive_plans
    from nnunetv2.experiment.memory import describe_machine

    source, machine = config_source(args.config), describe_machine(device, args.num_gpus)
    derived = derive_plans(plans, args.configuration, dataset_json, config, experiment_name(args), source, machine)
    check_pretrained_weights(resolve(derived, args.configuration))
    return derived


@contextlib.contextmanager
def former_training(
    args: argparse.Namespace, plans: dict[str, Any], dataset_json: dict[str, Any]
) -> Iterator[str | None]:
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
    network = build_on_meta(resolve(plans, args.configuration), count_classes(plans, dataset_json))
    with temporary_checkpoint(path, check_pretrained_checkpoint(path, network)) as copy:
        yield copy


def prepare_device(name: str, num_gpus: int, threads: int) -> "torch.device":
    """Return the device, with PyTorch's number of threads set; on GPUs as nnU-Net's own command sets it.

    Raises:
        ExperimentError: this machine has no such device, or too few GPUs.
    """
    import torch

    if name == "cuda" and torch.cuda.device_count() < num_gpus:
        found = torch.cuda.device_count()
        raise ExperimentError(
            f"-device cuda with -num_gpus {num_gpus}: PyTorch finds {found} usable GPUs here"
            + ("; train with -device cpu" if found == 0 else "")
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise ExperimentError("-device mps: PyTorch finds no such device here; train with -device cpu")
    torch.set_num_threads(threads)
    if name == "cuda":
        torch.set_num_interop_threads(1)
    return torch.device(name)


def check_checkpoint(folder: Path, args: argparse.Namespace) -> None:
    """Check that there is a training to continue or to validate.

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
