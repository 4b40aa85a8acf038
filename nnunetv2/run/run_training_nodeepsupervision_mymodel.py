"""The command `nnUNetv2_train_nodeepsupervision_mymodel`: the UperNet baseline under its first names."""

from collections.abc import Sequence

from nnunetv2.experiment.schema import packaged_configs
from nnunetv2.run.arguments import DefaultConfig, read_arguments, training_parser
from nnunetv2.run.train_experiment import run_command

COMMAND = "nnUNetv2_train_nodeepsupervision_mymodel"
DEFAULT_TRAINER = "nnUNetTrainerNoDeepSupervision_mymodel"
DEFAULT_CONFIG = DefaultConfig("upernet")


def run_training_entry(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        arguments: the command line without the command's name; by default that of the process.
    """
    description = f"Train the UperNet baseline in nnU-Net; packaged configurations train with {DEFAULT_TRAINER}."
    parser = training_parser(COMMAND, description, DEFAULT_TRAINER, DEFAULT_CONFIG)
    args = read_arguments(parser, DEFAULT_CONFIG, arguments)
    if args.config in packaged_configs() and args.trainer_class_name is None:
        args.trainer_class_name = DEFAULT_TRAINER  # packaged configurations name other ones
    run_command(COMMAND, args)


if __name__ == "__main__":
    run_training_entry()
