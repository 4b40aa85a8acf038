"""The targets of a batch, as nnU-Net's loaders may give them."""

from collections.abc import Sequence

from torch import Tensor


def full_size_target(target: Tensor | Sequence[Tensor]) -> Tensor:
    """Return the target at the size of the image.

    Args:
        target: that target, or a list that begins with it: nnU-Net's format for deep supervision, one per resolution.
    """
    return target if isinstance(target, Tensor) else target[0]
