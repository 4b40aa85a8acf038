"""Checks of decoder options that several decoders share."""

from collections.abc import Sequence

AUTO = "auto"  # the value of an option on which the network decides, which tells by its attribute `resolved_options`


def check_one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    """Check an option of a decoder that has a list of allowed values.

    Raises:
        ValueError: it is not.
    """
    if value not in allowed:
        raise ValueError(f"{name} must be {', '.join(allowed)}, found {value!r}")


def check_dropout(name: str, value: float) -> None:
    """Check the probability of a dropout.

    Raises:
        ValueError: it is not in [0, 1).
    """
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), found {value}")


def check_levels(decoder: str, feature_indices: Sequence[int]) -> None:
    """Check that a decoder that needs four feature layers gets four.

    Raises:
        ValueError: it does not.
    """
    if len(feature_indices) != 4:
        raise ValueError(f"{decoder} needs four feature layers, model.out_layers names {list(feature_indices)}")
