"""The arguments of the training commands: nnU-Net's own, plus configuration, name and overrides."""

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

DEVICES = ("cuda", "cpu", "mps")


class DefaultConfig(NamedTuple):
    """The configuration that a command takes where none is named, and the command's own option, if any, for another."""

    name: str
    flag: str | None = None


class OneSentenceParser(argparse.ArgumentParser):
    """A parser that ends on wrong arguments as the commands end on a wrong configuration: in one sentence."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


class OneConfiguration(argparse.Action):
    """Take a configuration; a second one, by whichever option, is an error."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Store the value of the option."""
        first = getattr(namespace, self.dest)
        if first is not None:
            parser.error(f"{option_string} {values}: a training has one configuration, and {first!r} is given already")
        setattr(namespace, self.dest, values)


def training_parser(
    prog: str, description: str, default_trainer: str, default_config: DefaultConfig | None = None
) -> argparse.ArgumentParser:
    """Return the parser of a training command.

    Args:
        prog: name of the command.
        description: what it does, in a sentence.
        default_trainer: the trainer of configurations that name none.
        default_config: None if a new training must name its configuration.
    """
    example = default_config.name if default_config else "upernet"
    parser = OneSentenceParser(
        prog=prog,
        description=description,
        epilog="Prediction needs only the stock command: nnUNetv2_predict -d DATASET -c CONFIGURATION -f FOLD "
        f"-tr TRAINER -p PLANS_NAME, where PLANS_NAME is <plans>_<name>, such as nnUNetPlans_{example}.",
        allow_abbrev=False,
    )
    parser.set_defaults(default_trainer=default_trainer)
    add = parser.add_argument
    add("dataset_name_or_id", help="data set, such as 101 or Dataset101_LESAV")
    add("configuration", help="a 2D configuration of the plans: 2d")
    add("fold", help="fold of the cross-validation: a number, or all")
    add("overrides", nargs="*", metavar="key=value", help="override the configuration: train.num_epochs=50")
    one, default = OneConfiguration, f" (default: {default_config.name})" if default_config else ""
    add("--config", action=one, help=f"name of a packaged configuration, or path to a YAML file{default}")
    if default_config and default_config.flag:
        add(default_config.flag, action=one, dest="config", metavar="CONFIG", help="the same as --config")
    add("--name", help="name of the experiment (default: the file name of the configuration)")
    add("-tr", "--trainer_class_name", help="trainer class (default: the configuration's trainer)")
    add("-p", "--plans_identifier", default="nnUNetPlans", help="plans to derive from (default: %(default)s)")
    add("-pretrained_weights", help="nnU-Net checkpoint to start from")
    add("-num_gpus", type=int, default=1, help="number of GPUs (default: %(default)s)")
    add("--npz", action="store_true", help="save the probabilities of the validation, for ensembling")
    add("--c", action="store_true", help="continue from the last checkpoint")
    add("--val", action="store_true", help="only run the validation; the training must be finished")
    add("--val_best", action="store_true", help="validate with checkpoint_best instead of checkpoint_final")
    add("--disable_checkpointing", action="store_true", help="write no checkpoints")
    add("-device", default="cuda", help="cuda, cpu or mps (default: %(default)s)")
    return parser


def read_arguments(
    parser: argparse.ArgumentParser, default_config: DefaultConfig, arguments: Sequence[str] | None
) -> argparse.Namespace:
    """Read the arguments of a command that has a configuration by default.

    Args:
        parser: see `training_parser`.
        default_config: taken unless `--name` alone says what to go on with.
        arguments: the command line without the command's name; None: that of the process.
    """
    args = parser.parse_intermixed_args(arguments)
    goes_on_by_name = args.name is not None and (args.c or args.val)
    if args.config is None and not goes_on_by_name:
        args.config = default_config.name
    return args
