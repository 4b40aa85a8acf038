"""The configuration of a training or an evaluation of a segmentor."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt

from dinov3.configuration.schema import ByName, OneOf, Problem, Section, build
from dinov3.configuration.yaml_files import ConfigFiles
from dinov3.eval.segmentation.config_checks import problems
from dinov3.eval.segmentation.config_sections import (
    CheckpointConfig,
    DatasetConfig,
    DecoderConfig,
    EvalConfig,
    EvalTransformConfig,
    LoRAConfig,
    M2FTrainConfig,
    ModelConfig,
    ModelDtype,
    OptimizerConfig,
    SchedulerConfig,
    TrainConfig,
    TrainTransformConfig,
    TransformConfig,
)

__all__ = [
    "CONFIG_FILES",
    "CheckpointConfig",
    "DatasetConfig",
    "DecoderConfig",
    "EvalConfig",
    "EvalTransformConfig",
    "LoRAConfig",
    "M2FTrainConfig",
    "ModelConfig",
    "ModelDtype",
    "OptimizerConfig",
    "SchedulerConfig",
    "SegmentationConfig",
    "TrainConfig",
    "TrainTransformConfig",
    "TransformConfig",
    "config_from",
    "read_config",
    "values_of",
]

METRICS = ("aAcc", "mIoU", "mAcc", "mDice", "mFscore", "mPrecision", "mRecall")
CONFIG_FILES = ConfigFiles(
    (Path(__file__).parent / "configs",), keys="model, datasets and decoder_head", example="optimizer.lr=0.001"
)


@dataclass
class SegmentationConfig(Section):
    """A training or an evaluation of a segmentor.

    Attributes:
        model: the ViT; None if the caller provides one.
        bs: batch size of one process.
        n_gpus: number of processes.
        num_workers: number of processes that load images, per training process.
        model_dtype: precision of the computation.
        seed: seed of all random numbers.
        datasets: the images.
        metric_to_save: metric that selects the best checkpoint.
        decoder_head: the decoder.
        scheduler: learning-rate schedule.
        optimizer: the optimizer.
        transforms: augmentation and normalisation.
        train: loss of the linear head.
        m2f_train: loss of Mask2Former.
        eval: evaluation.
        lora: low-rank adaptation of the ViT.
        output_dir: folder for all results.
        load_from: checkpoint of a segmentor to start from, or to evaluate.
        eval_only: evaluate the checkpoint `load_from` instead of training.
        gradient_accumulation_steps: number of batches per optimizer step.
        checkpoint: checkpoints written during training.
    """

    model: ModelConfig | None = None
    bs: PositiveInt = 2
    n_gpus: PositiveInt = 8
    num_workers: NonNegativeInt = 6
    model_dtype: Annotated[ModelDtype, ByName()] = ModelDtype.FLOAT32
    seed: Annotated[NonNegativeInt, Field(lt=2**63)] = 100
    datasets: DatasetConfig = field(default_factory=DatasetConfig)
    metric_to_save: Annotated[str, OneOf(*METRICS)] = "mIoU"
    decoder_head: DecoderConfig = field(default_factory=DecoderConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    transforms: TransformConfig = field(default_factory=TransformConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    m2f_train: M2FTrainConfig = field(default_factory=M2FTrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    output_dir: str | None = None
    load_from: str | None = None
    eval_only: bool = False
    gradient_accumulation_steps: PositiveInt = 1
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def problems(self) -> Iterator[Problem]:
        """Yield one sentence for each impossible combination of values and each missing value."""
        return problems(self)


def read_config(path: str | Path | None, overrides: Sequence[str] = ()) -> SegmentationConfig:
    """Read a configuration, in which a YAML file changes the defaults and overrides change both, and check it.

    Args:
        path: a YAML file, or the name of a packaged configuration (`CONFIG_FILES.names()`); None: the defaults.
        overrides: strings such as `optimizer.lr=0.001`; values are read as YAML.

    Raises:
        ExperimentError: names every unknown key, wrong type, impossible value and missing file, one per line.
    """
    file = None if path is None else CONFIG_FILES.find(str(path))
    values = CONFIG_FILES.read(file, overrides)
    values["model"] = values.get("model") or {}  # so that a missing ViT is reported
    return config_from(values, "the configuration" if path is None else str(path))


def config_from(values: dict[str, Any], source: str = "the configuration") -> SegmentationConfig:
    """Make a configuration from nested values, and check it; without `model`, the caller provides the ViT.

    Args:
        values: nested dictionary, as in a YAML file; missing keys keep their defaults.
        source: name of the configuration in the message.

    Raises:
        ExperimentError: see `read_config`.
    """
    return build(SegmentationConfig, values, source)


def values_of(config: SegmentationConfig) -> dict[str, Any]:
    """Return all values of a configuration in a form that YAML and JSON can hold: the inverse of `config_from`."""
    as_text = json.dumps(asdict(config), default=lambda value: value.name if isinstance(value, Enum) else str(value))
    return json.loads(as_text)
