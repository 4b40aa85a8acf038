"""The command `nnUNetv2_train_segformer`: that of every ViT experiment, with a configuration by default."""

from collections.abc import Sequence

from nnunetv2.run.arguments import training_parser
from nnunetv2.run.train_experiment import run_command

COMMAND = "nnUNetv2_train_segformer"
DEFAULT_TRAINER = "nnUNetTrainerNoDeepSupervision_segformer"
DEFAULT_CONFIG = "segformer_default"


def run_training_entry(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        arguments: the command line without the command's name; by default that of the process.
    """
    parser = training_parser(COMMAND, "Train SegFormer on a ViT in nnU-Net.", DEFAULT_TRAINER)
    parser.add_argument("--segformer_config", dest="config", help=f"the same as --config (default: {DEFAULT_CONFIG})")
    args = parser.parse_intermixed_args(arguments)
    goes_on_by_name = args.name is not None and (args.c or args.val)
    if args.config is None and not goes_on_by_name:
        args.config = DEFAULT_CONFIG
    run_command(COMMAND, args)


if __name__ == "__main__":
    run_training_entry()
