"""How masked attention is annealed away, block by block, in a training of EoMT or PMT.

At the start a query looks only where its mask is; at the end, as in prediction, everywhere. In between its mask applies
with a probability that falls polynomially from 1 to 0 (Kerssies et al., EoMT, 2025, https://arxiv.org/abs/2503.19108).
It is a function of the progress alone, so that a resumed training goes on exactly.
"""

from collections.abc import Sequence

EXPONENT = 0.9


def mask_probabilities(progress: float, start: Sequence[float], end: Sequence[float]) -> list[float]:
    """The probability of each block with masked attention that the mask of a query applies.

    Args:
        progress: steps that were made, as a fraction of all steps of the training, in [0, 1].
        start: per block, the fraction of the training until which masks always apply.
        end: per block, the fraction from which they never do; not below `start`.

    Returns:
        One number in [0, 1] per block.
    """
    return [_probability(progress, first, last) for first, last in zip(start, end, strict=True)]


def _probability(progress: float, start: float, end: float) -> float:
    if progress >= end:  # first, so that `start` and `end` may be the same
        return 0.0
    if progress <= start:
        return 1.0
    return (1 - (progress - start) / (end - start)) ** EXPONENT
