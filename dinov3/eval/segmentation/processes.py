"""The device, the precision, the processes and the random numbers of a training."""

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch import nn

from dinov3.errors import ExperimentError, in_one_line
from dinov3.eval.segmentation.config import ModelDtype, SegmentationConfig

PRECISIONS = {ModelDtype.FLOAT32: "no", ModelDtype.BFLOAT16: "bf16"}


def make_accelerator(config: SegmentationConfig) -> Accelerator:
    """Join the processes of `torchrun`, or be the only one.

    Args:
        config: `model_dtype`, `gradient_accumulation_steps` and `n_gpus` are read.

    Raises:
        ExperimentError: the number of processes is not `n_gpus`, or the device cannot do what is asked for.
    """
    try:
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # only when told so it joins processes on the CPU
            mixed_precision=PRECISIONS[config.model_dtype],
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            dataloader_config=DataLoaderConfiguration(non_blocking=True),
        )
    except (ValueError, RuntimeError) as error:
        raise ExperimentError(
            f"model_dtype {config.model_dtype.name} cannot be computed: {in_one_line(error)}"
        ) from error
    found, wanted = accelerator.num_processes, config.n_gpus
    if found != wanted:
        raise ExperimentError(
            f"n_gpus is {wanted}, but the number of processes is {found}: set n_gpus={found}, or start {wanted} by "
            f"`torchrun --nproc_per_node={wanted} -m dinov3.eval.segmentation.run …` (on several machines, n_gpus "
            "counts the processes of all)"
        )
    return accelerator


def synchronise_batch_norm(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Let batch norms take the statistics of all processes' batches, as the reference does; names stay.

    PyTorch has this for GPUs only: on the CPU each process normalises by its own batch.
    """
    if accelerator.num_processes == 1 or accelerator.device.type != "cuda":
        return model
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def seed_by(seed: int, *place: int) -> None:
    """Seed torch's generators by a place in the training, such as (step, batch, process).

    Dropout and sampled points then depend on nothing that a checkpoint would have to hold.
    """
    torch.manual_seed(int(np.random.SeedSequence([seed, *place]).generate_state(1, np.uint64)[0]))
