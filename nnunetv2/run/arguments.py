"""The arguments of the training commands: nnU-Net's own, plus configuration, name and overrides."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NoReturn

from dinov3.configuration.yaml_files import find_file
from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.experiment.plans import check_name
from nnunetv2.experiment.schema import find_config, packaged_configs
from nnunetv2.run.devices import DEVICES

INTERRUPTED = 130  # the exit code after Ctrl-C


@dataclass(frozen=True)
class TrainingCommand:
    """What the training commands differ in.

    Attributes:
        name: of the command.
        description: what it does, in a sentence.
        default_trainer: the trainer of configurations that name none.
        default_config: the configuration of a training that names none; None: it must name one.
        config_option: the command's own name of `--config`, if any.
        packaged_trainer: trains packaged configurations instead of the trainer that they name.
    """

    name: str
    description: str
    default_trainer: str
    default_config: str | None = None
    config_option: str | None = None
    packaged_trainer: str | None = None


@dataclass(frozen=True)
class TrainingArguments:
    """A parsed command line; the fields are the options of nnU-Net's command unless described here.

    Attributes:
        overrides: strings such as `train.num_epochs=50`.
        config: name of a packaged configuration, or path to a YAML file; None: `name` says which experiment to resume.
        name: name of the experiment, if it is not the configuration's.
        trainer_class_name: the trainer, if it is not the configuration's.
        default_trainer: the trainer of configurations that name none.
    """

    dataset_name_or_id: str
    configuration: str
    fold: str
    overrides: tuple[str, ...]
    config: str | None
    name: str | None
    trainer_class_name: str | None
    default_trainer: str
    plans_identifier: str
    pretrained_weights: str | None
    num_gpus: int
    npz: bool
    c: bool
    val: bool
    val_best: bool
    disable_checkpointing: bool
    device: str

    @property
    def starts_training(self) -> bool:
        """Whether a new training starts, rather than one that is resumed or validated."""
        return not (self.c or self.val)

    @property
    def experiment_name(self) -> str:
        """Name of the experiment: `--name`, or the file name of the configuration.

        Raises:
            ExperimentError: there is no such configuration.
        """
        return self.name or find_config(self.config).stem

    def check(self) -> None:
        """Check the values, and the options against each other.

        Raises:
            ExperimentError: names the options that exclude each other, or the value and what is allowed.
        """
        self._check_exclusions()
        if self.pretrained_weights is not None and find_file(self.pretrained_weights) is None:
            raise ExperimentError(f"-pretrained_weights: no such file: {self.pretrained_weights!r}")
        if "/" in self.plans_identifier:
            raise ExperimentError(f"-p takes the name of plans, such as nnUNetPlans, found {self.plans_identifier!r}")
        if self.device not in DEVICES:
            raise ExperimentError(f"-device {self.device!r} is unknown; allowed: {', '.join(DEVICES)}")
        if self.num_gpus < 1:
            raise ExperimentError(f"-num_gpus must be at least 1, found {self.num_gpus}")
        if self.num_gpus > 1 and self.device != "cuda":
            raise ExperimentError(f"-num_gpus {self.num_gpus} requires -device cuda, found -device {self.device}")
        self._check_experiment()

    def _check_exclusions(self) -> None:
        for first, second in (
            ("--c", "--val"),
            ("--val_best", "--disable_checkpointing"),
            ("--c", "-pretrained_weights"),
            ("--val", "-pretrained_weights"),
        ):
            if getattr(self, first.lstrip("-")) and getattr(self, second.lstrip("-")):
                raise ExperimentError(f"{first} and {second} exclude each other")

    def _check_experiment(self) -> None:
        if self.name is not None:
            check_name(self.name)
        if self.config is not None:
            check_name(self.experiment_name)
        elif self.starts_training:
            names = ", ".join(packaged_configs())
            raise ExperimentError(f"a new training needs --config: a path to a YAML file, or one of {names}")
        elif self.name is None:
            raise ExperimentError(f"{'--c' if self.c else '--val'} needs --name NAME (or --config) of the experiment")
        elif self.overrides:
            raise ExperimentError(
                f"override {self.overrides[0]!r} has no effect: the experiment {self.name!r} already exists "
                "and cannot be changed"
            )


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


def parse_arguments(command: TrainingCommand, arguments: Sequence[str] | None = None) -> TrainingArguments:
    """Parse the command line of a training command; exit with code 2 where it is wrong.

    Args:
        command: the command.
        arguments: the command line without the command's name; None: that of the process.
    """
    parsed = create_parser(command).parse_intermixed_args(arguments)
    resumes_by_name = parsed.name is not None and (parsed.c or parsed.val)
    if parsed.config is None and not resumes_by_name:
        parsed.config = command.default_config
    if parsed.trainer_class_name is None and parsed.config in packaged_configs():
        parsed.trainer_class_name = command.packaged_trainer
    parsed.overrides = tuple(parsed.overrides)
    parsed.default_trainer = command.default_trainer
    return TrainingArguments(**{field.name: getattr(parsed, field.name) for field in fields(TrainingArguments)})


def create_parser(command: TrainingCommand) -> argparse.ArgumentParser:
    """Return the parser of a training command."""
    default_config = command.default_config
    parser = OneSentenceParser(
        prog=command.name,
        description=command.description,
        epilog="Prediction needs only the stock command: nnUNetv2_predict -d DATASET -c CONFIGURATION -f FOLD "
        "-tr TRAINER -p PLANS_NAME, where PLANS_NAME is <plans>_<name>, such as "
        f"nnUNetPlans_{default_config or 'upernet'}.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("dataset_name_or_id", help="data set, such as 101 or Dataset101_LESAV")
    add("configuration", help="a 2D configuration of the plans: 2d")
    add("fold", help="fold of the cross-validation: a number, or all")
    add("overrides", nargs="*", metavar="key=value", help="override the configuration: train.num_epochs=50")
    one, default = OneConfiguration, f" (default: {default_config})" if default_config else ""
    add("--config", action=one, help=f"name of a packaged configuration, or path to a YAML file{default}")
    if command.config_option:
        add(command.config_option, action=one, dest="config", metavar="CONFIG", help="the same as --config")
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
