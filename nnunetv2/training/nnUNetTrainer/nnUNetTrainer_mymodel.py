"""The UperNet experiment under the project's first name."""

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer_vit import nnUNetTrainer_vit


class nnUNetTrainer_mymodel(nnUNetTrainer_vit):
    """`nnUNetTrainer_vit`; on plain plans it trains the packaged configuration `upernet`."""

    default_config = "upernet"
