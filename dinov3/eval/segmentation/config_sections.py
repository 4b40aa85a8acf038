"""The parts of a configuration of segmentation, with the defaults of the reference."""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

from omegaconf import MISSING
from pydantic import Field, GetPydanticSchema, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from dinov3.configuration.schema import ByName, OneOf, Section, rule
from dinov3.models.feature_layers import BackboneLayersSet

OnePerColour = rule("three numbers, [red, green, blue]", lambda values: len(values) == 3)
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
HeightAndWidth = Annotated[list[PositiveInt], rule("[height, width]", lambda sizes: len(sizes) == 2)]
RatioRange = Annotated[
    list[PositiveFloat],
    rule("two numbers, [smallest, largest]", lambda ratios: len(ratios) == 2 and ratios[0] <= ratios[1]),
]
FileName = Annotated[
    str | Path | None, GetPydanticSchema(lambda _type, handler: handler(str | None))
]  # a string in files


@dataclass
class LoRAConfig(Section):
    """Low-rank adaptation of the ViT (Hu et al., "LoRA", 2021, https://arxiv.org/abs/2106.09685).

    Attributes:
        enabled: whether to adapt.
        r: rank of the adapters.
        lora_alpha: their output is scaled by `lora_alpha / r`.
        target_modules: last names of the layers to adapt, within the attention of the blocks.
        lora_dropout: dropout on their input.
        bias: `none`, `all` or `lora_only`: the biases that peft leaves trainable; a segmentor trains only the adapters.
        use_rslora: scale by `lora_alpha / √r` instead.
    """

    enabled: bool = False
    r: PositiveInt = 8
    lora_alpha: PositiveInt = 16
    target_modules: Annotated[list[str], rule("at least one name", bool)] = field(
        default_factory=lambda: ["qkv", "proj"]
    )
    lora_dropout: BelowOne = 0.1
    bias: Annotated[str, OneOf("none", "all", "lora_only")] = "none"
    use_rslora: bool = False


@dataclass
class M2FTrainConfig(Section):
    """The loss of Mask2Former: keywords of `MaskClassificationLoss`.

    Attributes:
        num_points: points per mask.
        oversample_ratio: this times `num_points` candidates are drawn, of which the most uncertain are kept.
        importance_sample_ratio: share of the points that are the most uncertain candidates.
        mask_coefficient: weight of the cross-entropy of masks.
        dice_coefficient: weight of their Dice loss.
        class_coefficient: weight of the classes' cross-entropy.
        no_object_coefficient: weight of "no object" within the classes' cross-entropy.
    """

    num_points: PositiveInt = 12544
    oversample_ratio: Annotated[float, Field(ge=1, lt=1000)] = 3.0
    importance_sample_ratio: Share = 0.75
    mask_coefficient: NonNegativeFloat = 5.0
    dice_coefficient: NonNegativeFloat = 5.0
    class_coefficient: NonNegativeFloat = 2.0
    no_object_coefficient: PositiveFloat = 0.1


class ModelDtype(Enum):
    """Precision of the computation."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


@dataclass
class ModelConfig(Section):
    """The ViT: exactly one of `dino_hub` and `backbone` must name it.

    Attributes:
        config_file: must be None.
        pretrained_weights: a file of weights, in any format that `dinov3.weights` reads, or its URL (`https://…`).
        dino_hub: the reference's name of a DINOv3, such as `dinov3_vitl16`.
        pretrained: without a file, download timm's weights from the hub; if false, the weights are random.
        backbone: a family of the registry (`dinov3`, `dinov2`, `retfound`, …) or `timm:<name>`.
        backbone_size: a size of the family, or `tiny`; ignored with `timm:<name>`.
        checkpoint_path: the same as `pretrained_weights`; set only one of them.
    """

    config_file: str | None = None
    pretrained_weights: FileName = None
    dino_hub: str | None = None
    pretrained: bool = True
    backbone: str | None = None
    backbone_size: str = "base"
    checkpoint_path: FileName = None


@dataclass
class DatasetConfig(Section):
    """The images.

    Attributes:
        root: folder of the data set.
        train: layout and part of the training set, such as `ADE20K:split=TRAIN`, `CITYSCAPES:split=TRAIN` or
            `FOLDER:split=TRAIN`; empty: the training part of the layout that is found below `root`.
        val: the same for the validation set.
        val_share: share of the images that a random split holds out for validation.
        on_error: what to do with pairs that cannot be used: `stop`, or `skip` them.
        max_value: value of white in images of more than 8 bits; None: the largest value of their type.
        class_names: a different name for each class, in order; by default `class 0`, `class 1`, ….
    """

    root: str = MISSING
    train: str = ""
    val: str = ""
    val_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    on_error: Annotated[str, OneOf("stop", "skip")] = "stop"
    max_value: PositiveFloat | None = None
    class_names: list[str] | None = None


@dataclass
class DecoderConfig(Section):
    """The decoder on top of the ViT: arguments of `build_segmentation_decoder` and `LinearHead`.

    Attributes:
        type: `m2f` or `linear`.
        backbone_out_layers: the feature layers. `m2f` needs four of them, so not the default.
        use_batchnorm: `linear`: whether a batch norm precedes the classifier.
        use_cls_token: `linear`: whether the class token is concatenated to every patch token.
        use_backbone_norm: whether the ViT's final norm is applied to every feature layer; always with `m2f`.
        num_classes: number of classes; pixels labelled 255 are ignored.
        hidden_dim: `m2f`: number of channels of the head.
        dropout: `linear`: probability that a channel is dropped in training.
        num_queries: `m2f`: number of queries.
    """

    type: Annotated[str, OneOf("m2f", "linear")] = "m2f"
    backbone_out_layers: Annotated[BackboneLayersSet, ByName()] = BackboneLayersSet.LAST
    use_batchnorm: bool = True
    use_cls_token: bool = False
    use_backbone_norm: bool = True
    num_classes: Annotated[PositiveInt, Field(le=255)] = 150
    hidden_dim: PositiveInt = 2048
    dropout: BelowOne = 0.1
    num_queries: PositiveInt = 100


@dataclass
class SchedulerConfig(Section):
    """The learning rate over the training: arguments of `build_scheduler`.

    Attributes:
        type: name of the schedule.
        total_iter: number of optimizer steps of the training.
        constructor_kwargs: further keywords of the schedule.
    """

    type: Annotated[str, OneOf("WarmupOneCycleLR", "WarmupMultiStepLR", "WarmupPolyLR")] = "WarmupOneCycleLR"
    total_iter: PositiveInt = 40_000
    constructor_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class OptimizerConfig(Section):
    """AdamW.

    Attributes:
        lr: peak learning rate.
        beta1: decay rate of the running mean of the gradients.
        beta2: decay rate of the running mean of their squares.
        weight_decay: decoupled weight decay.
        gradient_clip: maximum norm of the gradient.
    """

    lr: PositiveFloat = 1e-3
    beta1: BelowOne = 0.9
    beta2: BelowOne = 0.999
    weight_decay: NonNegativeFloat = 1e-2
    gradient_clip: PositiveFloat = 35.0


@dataclass
class TrainTransformConfig(Section):
    """Augmentation: arguments of `make_segmentation_train_transforms`.

    Attributes:
        img_size: length of the shorter side after resizing; None keeps the image's.
        random_img_size_ratio_range: smallest and largest random factor on that length.
        crop_size: (height, width) of a random crop.
        flip_prob: probability of a horizontal flip.
    """

    img_size: PositiveInt | None = None
    random_img_size_ratio_range: RatioRange | None = None
    crop_size: HeightAndWidth | None = None
    flip_prob: Share = 0.0


@dataclass
class EvalTransformConfig(Section):
    """Preprocessing for evaluation: arguments of `make_segmentation_eval_transforms`.

    Attributes:
        img_size: length of the shorter side after resizing; None keeps the image's.
        tta_ratios: factors on that length, one for each view of test-time augmentation.
    """

    img_size: PositiveInt | None = None
    tta_ratios: Annotated[list[PositiveFloat], rule("at least one number", bool)] = field(default_factory=lambda: [1.0])


@dataclass
class TransformConfig(Section):
    """Transforms of images and labels.

    Attributes:
        train: for training.
        eval: for evaluation.
        mean: mean of each colour channel, for pixels from 0 to 255.
        std: standard deviation of each colour channel.
    """

    train: TrainTransformConfig = field(default_factory=TrainTransformConfig)
    eval: EvalTransformConfig = field(default_factory=EvalTransformConfig)
    mean: Annotated[list[float], OnePerColour] = field(
        default_factory=lambda: [255 * value for value in (0.485, 0.456, 0.406)]
    )
    std: Annotated[list[PositiveFloat], OnePerColour] = field(
        default_factory=lambda: [255 * value for value in (0.229, 0.224, 0.225)]
    )


@dataclass
class TrainConfig(Section):
    """The loss of the linear head: arguments of `MultiSegmentationLoss`.

    Attributes:
        diceloss_weight: weight of the Dice loss.
        celoss_weight: weight of the cross-entropy.
    """

    diceloss_weight: NonNegativeFloat = 0.0
    celoss_weight: NonNegativeFloat = 1.0


@dataclass
class EvalConfig(Section):
    """Evaluation.

    Attributes:
        compute_metric_per_image: average the metrics over images instead of computing them over all pixels.
        reduce_zero_label: label 0 means "unlabelled" and is ignored; label 1 becomes class 0, and so on.
        mode: `whole` or `slide`.
        crop_size: `slide`: height and width of the tiles.
        stride: `slide`: distance between tiles; None: two thirds of `crop_size`.
        eval_interval: number of optimizer steps between evaluations.
        use_tta: average over views at all `tta_ratios` and their horizontal flips.
        max_val_samples: number of images to evaluate during training; 0 for all.
        num_visualizations: number of images whose predictions are drawn.
    """

    compute_metric_per_image: bool = False
    reduce_zero_label: bool = True
    mode: Annotated[str, OneOf("whole", "slide")] = "slide"
    crop_size: PositiveInt | None = 512
    stride: PositiveInt | None = 341
    eval_interval: PositiveInt = 40_000
    use_tta: bool = False
    max_val_samples: NonNegativeInt = 0
    num_visualizations: NonNegativeInt = 0


@dataclass
class CheckpointConfig(Section):
    """Checkpoints that are written while training.

    Attributes:
        interval: number of optimizer steps between them.
        keep_last: number of recent checkpoints to keep, besides the best one.
    """

    interval: PositiveInt = 1000
    keep_last: PositiveInt = 2
