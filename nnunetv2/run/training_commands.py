"""The training commands: `nnUNetv2_train_vit`, and those that have a configuration by default.

What is set here must be set before NumPy and torch are loaded, which only `train` does: `--help` and a wrong
configuration are answered at once.
"""

import errno
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.run.arguments import TrainingCommand, parse_arguments
from nnunetv2.run.cpu_cores import share_cores
from nnunetv2.run.train_experiment import train

TRAIN_VIT = TrainingCommand("nnUNetv2_train_vit", "Train a ViT segmentation model in nnU-Net.", "nnUNetTrainer_vit")
TRAIN_M2F = TrainingCommand(
    "nnUNetv2_train_m2f", "Train Mask2Former on a ViT in nnU-Net.", "nnUNetTrainer_m2f", "m2f_default", "--m2f_config"
)
TRAIN_SEGFORMER = TrainingCommand(
    "nnUNetv2_train_segformer",
    "Train SegFormer on a ViT in nnU-Net.",
    "nnUNetTrainerNoDeepSupervision_segformer",
    "segformer_default",
    "--segformer_config",
)
# The UperNet baseline under its first names
TRAIN_MYMODEL = TrainingCommand(
    "nnUNetv2_train_nodeepsupervision_mymodel",
    "Train the UperNet baseline in nnU-Net; packaged configurations train with nnUNetTrainerNoDeepSupervision_mymodel.",
    "nnUNetTrainerNoDeepSupervision_mymodel",
    "upernet",
    packaged_trainer="nnUNetTrainerNoDeepSupervision_mymodel",
)
# As nnU-Net sets them when it is run as a script
SINGLE_THREAD_VARIABLES = ("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")
# What nnU-Net's own reading and writing ends in on a full, a read-only or a foreign disk
DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.ENAMETOOLONG),
)


def train_vit(arguments: Sequence[str] | None = None) -> None:
    """Run `nnUNetv2_train_vit` with a command line without the command's name; None: that of the process."""
    run_command(TRAIN_VIT, arguments)


def train_m2f(arguments: Sequence[str] | None = None) -> None:
    """Run `nnUNetv2_train_m2f`, as `train_vit` does its command."""
    run_command(TRAIN_M2F, arguments)


def train_segformer(arguments: Sequence[str] | None = None) -> None:
    """Run `nnUNetv2_train_segformer`, as `train_vit` does its command."""
    run_command(TRAIN_SEGFORMER, arguments)


def train_mymodel(arguments: Sequence[str] | None = None) -> None:
    """Run `nnUNetv2_train_nodeepsupervision_mymodel`, as `train_vit` does its command."""
    run_command(TRAIN_MYMODEL, arguments)


def run_command(command: TrainingCommand, arguments: Sequence[str] | None) -> None:
    """Train; end with one sentence and exit code 2 on what the user can put right.

    Args:
        command: the command.
        arguments: the command line without the command's name; None: that of the process.
    """
    parsed = parse_arguments(command, arguments)
    threads = share_cores() if parsed.device == "cpu" else 1
    os.environ["OMP_NUM_THREADS"] = str(threads)
    for variable in SINGLE_THREAD_VARIABLES:
        os.environ[variable] = "1"
    try:
        train(parsed, threads)
    except ExperimentError as error:
        _refuse(command, str(error))
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        file = error.filename or "a file"
        _refuse(command, f"cannot read or write {file}: {error.strerror}; existing checkpoints are unchanged")
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0]
        _refuse(command, f"out of memory: {reason}; lower train.batch_size or train.patch_size, or shrink the decoder")


def _is_out_of_memory(error: Exception) -> bool:
    # torch.OutOfMemoryError of a GPU; on the CPU PyTorch has no class for it
    is_named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return is_named or "can't allocate memory" in str(error)


def _refuse(command: TrainingCommand, message: str) -> NoReturn:
    print(f"{command.name}: error: {message}", file=sys.stderr)
    sys.exit(2)
