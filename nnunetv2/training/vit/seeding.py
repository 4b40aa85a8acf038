"""Seeds of a training."""

import random

import numpy as np
import torch


def seed_epoch(seed: int | None, epoch: int, rank: int) -> None:
    """Seed Python, NumPy and PyTorch, so that a resumed epoch draws what it would have drawn.

    Args:
        seed: of the training; None: nothing is seeded.
        epoch: number of the epoch that comes next.
        rank: number of the process in distributed training.
    """
    if seed is None:
        return
    python, numpy, pytorch = (int(word) for word in np.random.SeedSequence([seed, epoch, rank]).generate_state(3))
    random.seed(python)
    np.random.seed(numpy)
    torch.manual_seed(pytorch)
