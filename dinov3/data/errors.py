"""The error for a file of a data set."""

from dinov3.errors import ExperimentError


class ImageFileError(ExperimentError):
    """A file of an image or of labels that cannot be used, or a pair that does not fit together."""

    def __init__(self, message: str) -> None:
        # a data loader makes the error of its process anew, with the traceback before the sentence
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())
