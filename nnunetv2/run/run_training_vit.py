"""The command `nnUNetv2_train_vit`."""

from collections.abc import Sequence

from nnunetv2.run.arguments import training_parser
from nnunetv2.run.train_experiment import run_command

COMMAND = "nnUNetv2_train_vit"
DEFAULT_TRAINER = "nnUNetTrainer_vit"


def run_training_entry(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        arguments: the command line without the command's name; by default that of the process.
    """
    parser = training_parser(COMMAND, "Train a ViT segmentation model in nnU-Net.", DEFAULT_TRAINER)
    run_command(COMMAND, parser.parse_intermixed_args(arguments))


if __name__ == "__main__":
    run_training_entry()
