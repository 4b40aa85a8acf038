"""When masked attention is annealed away: the papers' schedules, and the one of an experiment in its plans.

All times are fractions of the training.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from nnunetv2.experiment.errors import ExperimentError

DIGITS = 4  # of default times: plans are for people too
KEY = "train.mask_annealing"


class Annealing(NamedTuple):
    """When the mask of each block is annealed away.

    Attributes:
        start: per block, from the first, the fraction of the training until which its masks always apply.
        end: per block the fraction from which they never do.
    """

    start: list[float]
    end: list[float]


def in_fractions(num_steps: int, start: Sequence[int], end: Sequence[int]) -> Annealing:
    """A schedule of steps in fractions of a training of so many steps."""
    return Annealing([step / num_steps for step in start], [step / num_steps for step in end])


# On ADE20K: of EoMT (Kerssies et al., 2025, https://arxiv.org/abs/2503.19108) with four blocks, of PMT (Cavagnero et
# al., 2026, https://arxiv.org/abs/2603.25398) with six.
EOMT = in_fractions(20_000, (0, 6520, 9780, 13040), (3000, 9780, 13040, 16300))
EOMT_DINOV2 = in_fractions(40_000, (6520, 13040, 19560, 26080), (13040, 19560, 26080, 32600))
PMT = in_fractions(20_000, (0, 5384, 7403, 9422, 11442, 13461), (3000, 8749, 10769, 12788, 14807, 16826))


def default_annealing(num_blocks: int, backbone: str) -> Annealing:
    """The papers' schedule for a number of masked blocks, or one between.

    EoMT's has four blocks, and is another one for DINOv2; PMT's has six. Up to five blocks take EoMT's, more take
    PMT's. For other numbers than four and six it is stretched over the blocks, linearly: the first and the last block
    have the times of the first and the last in the paper. Where the first block is annealed away at once, long before
    the second, it is so for every number, and the other blocks are stretched.

    Args:
        num_blocks: number of blocks with masked attention, at least 1.
        backbone: family of the backbone, or `timm:<name>`.
    """
    if num_blocks > len(EOMT.start) + 1:
        reference, kept = PMT, 1
    elif "dinov2" in backbone:
        reference, kept = EOMT_DINOV2, 0
    else:
        reference, kept = EOMT, 1
    return Annealing(*(_stretched(times, num_blocks, kept) for times in reference))


def _stretched(times: Sequence[float], count: int, kept: int) -> list[float]:
    """Times of so many blocks: the first `kept` as they are, the others interpolated."""
    head, rest = list(times[:kept]), times[kept:]
    wanted = count - kept
    places = [i * (len(rest) - 1) / (wanted - 1) for i in range(wanted)] if wanted > 1 else [len(rest) - 1.0] * wanted
    return [round(time, DIGITS) for time in (*head, *(_interpolated(rest, place) for place in places))]


def _interpolated(values: Sequence[float], place: float) -> float:
    """The value at a place between two indices."""
    below = min(int(place), len(values) - 2)
    return values[below] + (place - below) * (values[below + 1] - values[below])


def resolve_annealing(experiment: dict[str, Any], network: nn.Module) -> None:
    """Write the schedule of an experiment out, and check that it has a time for every block.

    Args:
        experiment: the experiment in the plans, whose `train.mask_annealing`, if it has this key, is changed.
        network: its network.

    Raises:
        ExperimentError: the schedule has another number of blocks than the network.
    """
    train, num_blocks = experiment["train"], getattr(network, "num_masked_blocks", 0)
    given = train.get("mask_annealing")
    if given is not None and len(given["start"]) != num_blocks:
        raise ExperimentError(
            f"{KEY} must have a start and an end for each block with masked attention, of which this network has "
            f"{num_blocks}, found {len(given['start'])}"
        )
    if "mask_annealing" in train and given is None and num_blocks:
        train["mask_annealing"] = default_annealing(num_blocks, experiment["model"]["backbone"])._asdict()
