"""Another name of `nnUNetTrainer_segformer`, which never has deep supervision."""

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer_segformer import nnUNetTrainer_segformer


class nnUNetTrainerNoDeepSupervision_segformer(nnUNetTrainer_segformer):
    """`nnUNetTrainer_segformer` with results in a folder of its own."""
