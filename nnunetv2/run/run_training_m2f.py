"""The command `nnUNetv2_train_m2f`: that of every ViT experiment, with a configuration by default."""

from collections.abc import Sequence

from nnunetv2.run.arguments import DefaultConfig, read_arguments, training_parser
from nnunetv2.run.train_experiment import run_command

COMMAND = "nnUNetv2_train_m2f"
DEFAULT_TRAINER = "nnUNetTrainer_m2f"
DEFAULT_CONFIG = DefaultConfig("m2f_default", "--m2f_config")


def run_training_entry(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        arguments: the command line without the command's name; by default that of the process.
    """
    parser = training_parser(COMMAND, "Train Mask2Former on a ViT in nnU-Net.", DEFAULT_TRAINER, DEFAULT_CONFIG)
    run_command(COMMAND, read_arguments(parser, DEFAULT_CONFIG, arguments))


if __name__ == "__main__":
    run_training_entry()
