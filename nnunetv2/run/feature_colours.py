"""The patch features of a ViT as colours: their first three principal components are red, green and blue."""

from typing import NamedTuple

import torch
from torch import Tensor

COMPONENTS = 3
DARKEST, BRIGHTEST = 0.01, 0.99  # quantiles: a few outlying patches do not decide on all the others


class FeatureColours(NamedTuple):
    """A map of features as a picture.

    Attributes:
        picture: (h, w, 3), 0 to 1.
        explained: the share of the variance that the three components have, 0 to 1.
    """

    picture: Tensor
    explained: float


def feature_colours(features: Tensor) -> FeatureColours:
    """Project a map of features onto its first three principal components.

    The same features always give the same colours: a component points to where its largest weight is positive.

    Args:
        features: (C, h, w), at least three channels.
    """
    tokens = features.double().flatten(1).T
    centred = tokens - tokens.mean(0)
    # of the covariance, not of the tokens: exact, and as large as the ViT is wide, however large the image
    variances, directions = torch.linalg.eigh(centred.T @ centred)  # ascending
    chosen = directions.flip(1)[:, :COMPONENTS]
    largest = chosen.gather(0, chosen.abs().argmax(0, keepdim=True))
    components = centred @ (chosen * largest.sign())
    explained = float(variances[-COMPONENTS:].sum() / variances.sum().clamp(min=torch.finfo(torch.float64).tiny))
    return FeatureColours(_stretched(components).unflatten(0, features.shape[1:]).float(), explained)


def _stretched(components: Tensor) -> Tensor:
    """Each column of (n, 3) from 0 to 1 between its two quantiles; a constant one is 0."""
    low, high = components.quantile(DARKEST, dim=0), components.quantile(BRIGHTEST, dim=0)
    return ((components - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)


def enlarged(picture: Tensor, cell: int, size: tuple[int, int]) -> Tensor:
    """Draw every cell of (h, w, 3) as cell × cell pixels, and cut off what lies beyond `size`, (height, width)."""
    return picture.repeat_interleave(cell, 0).repeat_interleave(cell, 1)[: size[0], : size[1]]
