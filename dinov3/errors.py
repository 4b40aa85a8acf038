"""The error for what a user can put right, and the words that it is told in."""

import difflib
from collections.abc import Iterable


class ExperimentError(ValueError):
    """A wrong data set, configuration, key, value, checkpoint or device.

    The message is one sentence (or one line per problem) that names the thing, the value found and the values allowed;
    the commands print it without a traceback and exit with code 2.
    """


def in_one_line(error: Exception) -> str:
    """Return the kind and the message of an error, without line breaks and not too long."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the entry of `allowed` that is most like `name`, or an empty string."""
    matches = difflib.get_close_matches(name, list(allowed), n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""
