"""The error for what a user can put right, and its form for networks."""

from dinov3.errors import ExperimentError

__all__ = ["ExperimentError", "not_to_be_built"]


def not_to_be_built(error: Exception) -> ExperimentError:
    """Return the error for a network that cannot be built as configured, for the reason that a decoder gives."""
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return ExperimentError(f"the network cannot be built as configured: {kind}{' '.join(str(error).split())}")
