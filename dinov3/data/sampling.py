"""Which image is drawn when, for a training that can start at any step: all is a function of the seed."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

AUGMENTATION, ORDER, SPLIT = range(3)  # what a seed is derived for

Draw = tuple[int, int]


def derived_seed(seed: int, *purpose: int) -> int:
    """Derive a seed for a purpose, such as `AUGMENTATION` of the draw 5, independent of that of any other purpose."""
    return int(np.random.SeedSequence(seed, spawn_key=purpose).generate_state(1, np.uint64)[0])


class DrawBatches(Sampler[list[Draw]]):
    """Batches of draws: every epoch has each image once, in another order, and the next one follows at once.

    A draw is (its number within the training, the index of its image). Batches that reach over the end of an epoch,
    or over several, are as long as all others.

    Args:
        num_images: number of images.
        batch_size: draws per batch.
        num_batches: number of batches of the whole training.
        seed: of the order.
        first_batch: where to begin.
    """

    def __init__(self, num_images: int, batch_size: int, num_batches: int, seed: int, first_batch: int = 0) -> None:
        super().__init__()
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.batches = range(first_batch, num_batches)
        self.drop_last = False  # Accelerate reads this attribute, and batch_size

    def __len__(self) -> int:
        """Return the number of batches that are left."""
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Draw]]:
        """Yield the batches that are left."""
        epoch, order = -1, []
        for batch in self.batches:
            draws = []
            for draw in range(batch * self.batch_size, (batch + 1) * self.batch_size):
                if draw // self.num_images != epoch:
                    epoch = draw // self.num_images
                    order = self._order(epoch)
                draws.append((draw, order[draw % self.num_images]))
            yield draws

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, ORDER, epoch))
        return torch.randperm(self.num_images, generator=generator).tolist()
