"""The error for a file of a data set."""

from dinov3.errors import ExperimentError


class ImageFileError(ExperimentError):
    """An image or label file that cannot be used, or an image and labels that do not fit together."""

    def __init__(self, message: str) -> None:
        # a data loader raises a worker's error again with the worker's traceback before the message
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())
