"""Another name of `nnUNetTrainer_mymodel`, which never has deep supervision."""

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer_mymodel import nnUNetTrainer_mymodel


class nnUNetTrainerNoDeepSupervision_mymodel(nnUNetTrainer_mymodel):
    """`nnUNetTrainer_mymodel` with results in a folder of its own."""
