"""The error for what a user can put right."""


class ExperimentError(ValueError):
    """A wrong data set, configuration, key, value, checkpoint or device.

    The message is one sentence (or one line per problem) that names the thing, the value found and the values allowed;
    the commands print it without a traceback and exit with code 2.
    """
