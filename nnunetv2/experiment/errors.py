"""The error for what a user can put right."""


class ExperimentError(ValueError):
    """A wrong data set, configuration, key, value, checkpoint or device.

    The message is one sentence (or one line per problem) that names the thing, the value found and the values allowed;
    the commands print it without a traceback and exit with code 2.
    """


def in_one_line(error: Exception) -> str:
    """Return the kind and the message of an error, without line breaks and not too long."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def not_to_be_built(error: Exception) -> ExperimentError:
    """Return the error for a network that cannot be built as configured, for the reason that a decoder gives."""
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return ExperimentError(f"the network cannot be built as configured: {kind}{' '.join(str(error).split())}")
