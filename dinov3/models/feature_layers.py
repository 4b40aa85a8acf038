"""Feature layers: the transformer blocks whose outputs are fed to the decoder."""

from collections.abc import Sequence
from enum import Enum
from numbers import Integral


class BackboneLayersSet(Enum):
    """Which blocks of the ViT are the feature layers."""

    LAST = "LAST"
    FOUR_LAST = "FOUR_LAST"
    FOUR_EVEN_INTERVALS = "FOUR_EVEN_INTERVALS"

    def indices(self, depth: int) -> list[int]:
        """0-based indices for a ViT of `depth` blocks.

        Raises:
            ValueError: there are fewer than four blocks.
        """
        if self is BackboneLayersSet.LAST:
            return [depth - 1]
        _check_depth(depth)
        if self is BackboneLayersSet.FOUR_LAST:
            return list(range(depth - 4, depth))
        if depth == 24:
            return [4, 11, 17, 23]  # the reference's choice for ViT-L
        return [quarter * (depth // 4) - 1 for quarter in (1, 2, 3, 4)]


def ends_of_quarters(depth: int) -> list[int]:
    """0-based indices of the last block of each of four even quarters; they differ from the reference's for ViT-L.

    Raises:
        ValueError: there are fewer than four blocks.
    """
    _check_depth(depth)
    return [depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]


def _check_depth(depth: int) -> None:
    if depth < 4:
        raise ValueError(f"a backbone of {depth} blocks has no four feature layers: set out_layers")


def layer_indices(layers: BackboneLayersSet | str | Sequence[int], depth: int) -> list[int]:
    """0-based, ascending indices of the feature layers of a ViT of `depth` blocks.

    Args:
        layers: a set (or its name), or the indices themselves.
        depth: number of blocks.

    Raises:
        ValueError: there is no such set, no such block, or the order is not ascending.
    """
    if isinstance(layers, str):
        if layers not in BackboneLayersSet.__members__:
            allowed = ", ".join(BackboneLayersSet.__members__)
            raise ValueError(f"unknown set of layers {layers!r}; allowed: {allowed}")
        layers = BackboneLayersSet[layers]
    indices = layers.indices(depth) if isinstance(layers, BackboneLayersSet) else list(layers)
    exist = all(isinstance(index, Integral) and 0 <= index < depth for index in indices)
    if not indices or not exist or indices != sorted(set(indices)):
        raise ValueError(f"out_layers {indices} must be ascending block indices from 0 to {depth - 1}")
    return [int(index) for index in indices]
