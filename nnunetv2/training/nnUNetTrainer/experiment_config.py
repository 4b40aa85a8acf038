"""What the configurations of all experiments share: the section `train`, and how they go into the plans."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Optional

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from dinov3.configuration.schema import OneOf, Section, rule
from nnunetv2.experiment.errors import ExperimentError
from nnunetv2.experiment.groups import are_groups, read_groups

# `Optional[...]`, not `... | None`, in the fields: every omegaconf that we allow reads it.
# ruff: noqa: UP045


def is_pair(values: list[Any]) -> bool:
    """Whether there are two values."""
    return len(values) == 2


BelowOne = Annotated[float, Field(ge=0, lt=1)]
Optimizer = Annotated[str, OneOf("sgd", "adamw")]
Precision = Annotated[str, OneOf("float32", "float16", "bfloat16")]
Schedule = Annotated[str, OneOf("poly", "cosine", "onecycle")]
Interval = Annotated[str, OneOf("epoch", "iteration")]
Groups = Annotated[  # a text or a mapping: OmegaConf has no such union
    Any,
    rule("the path of a CSV file, or a mapping of cases to groups", lambda value: value is None or are_groups(value)),
]


# The strings below the fields are their descriptions in the configuration reference; subclasses inherit them.


@dataclass
class TrainConfig(Section):
    """The keys of `train` that every experiment has. What is null has nnU-Net's own value."""

    optimizer: Optimizer = "sgd"
    """`sgd` (Nesterov) or `adamw`"""
    initial_lr: Optional[PositiveFloat] = None
    """learning rate (nnU-Net: 0.01)"""
    weight_decay: Optional[NonNegativeFloat] = None
    """weight decay (nnU-Net: 0.00003)"""
    betas: Annotated[list[BelowOne], rule("two numbers", is_pair)] = field(default_factory=lambda: [0.9, 0.999])
    """AdamW's two betas"""
    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """SGD's momentum"""
    schedule: Schedule = "poly"
    """learning rate over the epochs; `onecycle` warms up for 30 % of them, or for warmup_epochs"""
    schedule_interval: Interval = "epoch"
    """the learning rate changes with every `epoch`, as nnU-Net's, or with every `iteration`"""
    warmup_epochs: NonNegativeFloat = 0
    """epochs of linear rise, with schedule_interval `iteration` also parts of one; for `onecycle` the length of the
    rise"""
    warmup_fraction: Optional[BelowOne] = None
    """instead of warmup_epochs, the rise as a fraction of the training; with schedule_interval `iteration` only"""
    poly_exponent: PositiveFloat = 0.9
    """power of the schedule `poly`"""
    num_epochs: Optional[PositiveInt] = None
    """epochs (nnU-Net: 1000)"""
    num_iterations_per_epoch: Optional[PositiveInt] = None
    """training iterations per epoch (nnU-Net: 250)"""
    num_val_iterations_per_epoch: Optional[PositiveInt] = None
    """validation iterations (nnU-Net: 50)"""
    batch_size: Optional[PositiveInt] = None
    """images per batch, over all GPUs (nnU-Net: from the plans)"""
    patch_size: Optional[Annotated[list[PositiveInt], rule("[height, width]", is_pair)]] = None
    """[height, width] in pixels (nnU-Net: from the plans)"""
    precision: Precision = "float16"
    """of the network's forward pass; with autocast on a GPU, and on a CPU to bfloat16 where it computes natively"""
    save_every: Optional[PositiveInt] = None
    """epochs between two checkpoints (nnU-Net: 50)"""
    seed: Optional[NonNegativeInt] = None
    """seed; with nnUNet_n_proc_DA=0 a training is repeatable. null: none"""
    num_training_cases: Optional[PositiveInt] = None
    """train on so many of the fold's training cases, chosen by `train.seed` (null counts as 0); a smaller number
    chooses among those of a larger one, and validation cases stay the same. null: all"""
    training_groups: Groups = None
    """with num_training_cases: take whole groups, such as all images of a patient, as long as they fit; the path of a
    CSV file with the columns `case` and `group`, or a mapping of cases to groups"""
    compile: Optional[bool] = None
    """torch.compile, on a GPU (nnU-Net: as the variable nnUNet_compile says)"""

    def problems(self) -> Iterator[str]:
        """Yield what is impossible about combinations of values."""
        num_epochs = self.num_epochs or 1000
        if self.warmup(num_epochs) >= num_epochs:
            yield f"train.warmup_epochs must be below train.num_epochs ({num_epochs}), found {self.warmup_epochs:g}"
        yield from self._length_problems("warmup")
        try:
            self.read_training_groups()
        except ExperimentError as error:
            yield f"train.training_groups: {error}"

    def _length_problems(self, name: str) -> Iterator[str]:
        """Yield what is impossible about a length that is given in epochs or as a fraction of the training."""
        epochs, fraction = getattr(self, f"{name}_epochs"), getattr(self, f"{name}_fraction")
        if epochs and fraction is not None:
            yield (
                f"train.{name}_epochs is {epochs:g}, train.{name}_fraction {fraction:g}: they stand for the same; set "
                f"one of them, and train.{name}_fraction=null to take back that of a base"
            )
        elif self.schedule_interval == "epoch" and (fraction is not None or (epochs or 0) % 1):
            given = f"{name}_fraction={fraction:g}" if epochs in (None, 0) else f"{name}_epochs={epochs:g}"
            yield f"train.{given} needs train.schedule_interval=iteration: learning rates change with the epoch only"

    def warmup(self, num_epochs: int) -> float:
        """Length of the warm-up of a training of so many epochs, in epochs."""
        return self.warmup_epochs if self.warmup_fraction is None else self.warmup_fraction * num_epochs

    def backbone_warmup(self, num_epochs: int) -> float | None:
        """Length of the backbone's own warm-up, in epochs; None: it has none."""
        return None

    def read_training_groups(self) -> dict[str, str] | None:
        """The groups as a mapping; None: there are none.

        Raises:
            ExperimentError: the CSV file cannot be read.
        """
        groups = self.training_groups
        return read_groups(Path(groups).expanduser()) if isinstance(groups, str) else groups


class ExperimentConfig(Section):
    """Base of the configurations of experiments: dataclasses with at least `trainer` and `train`."""

    # The trainers that a schema is for, by name: a configuration is checked before they are imported.
    TRAINERS: ClassVar[tuple[str, ...]]
    # what to turn down when training diverges
    CLIP_KEY: ClassVar[str] = "train.gradient_clip"
    PRECISION_KEY: ClassVar[str] = "train.precision"
    model: Any = None  # None: the network is that of the plans derived from

    @classmethod
    def schema_for(cls, values: dict[str, Any]) -> type:
        """The schema of a configuration, of which nothing is checked yet: this one.

        Args:
            values: nested dictionary.
        """
        return cls

    def stored(self) -> Any:
        """The configuration as it goes into the plans: this one."""
        return self

    @property
    def gradient_clip(self) -> float | None:
        """Maximum gradient norm; None: nnU-Net's."""
        return self.train.gradient_clip

    def problems(self) -> Iterator[str]:
        """Yield what is impossible about combinations of values."""
        yield from self.train.problems()

    def weight_problems(self) -> Iterator[str]:
        """Yield why a new training cannot have its pretrained weights, as far as it shows without torch and timm."""
        yield from ()

    def start_from_checkpoint(self) -> None:
        """Ask for no pretrained weights: a checkpoint of another training overwrites them at once."""
