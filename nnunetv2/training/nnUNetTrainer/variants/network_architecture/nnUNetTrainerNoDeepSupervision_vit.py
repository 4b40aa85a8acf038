"""Another name of `nnUNetTrainer_vit`, which never has deep supervision."""

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer_vit import nnUNetTrainer_vit


class nnUNetTrainerNoDeepSupervision_vit(nnUNetTrainer_vit):
    """`nnUNetTrainer_vit` with results in a folder of its own."""
