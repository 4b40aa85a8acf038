"""Settings of segmentation, with the defaults of the reference."""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from dinov3.models.feature_layers import BackboneLayersSet


@dataclass
class LoRAConfig:
    """Low-rank adaptation of the ViT (Hu et al., "LoRA", 2021, https://arxiv.org/abs/2106.09685).

    Attributes:
        enabled: whether to adapt.
        r: rank of the adapters.
        lora_alpha: their output is scaled by `lora_alpha / r`.
        target_modules: last names of the layers to adapt, within the attention of the blocks.
        lora_dropout: dropout on their input.
        bias: `none`, `all` or `lora_only`: which biases peft leaves trainable. A segmentor trains the adapters alone.
        use_rslora: scale by `lora_alpha / √r` instead.
    """

    enabled: bool = False
    r: int = 8
    lora_alpha: int = 16
    target_modules: list[str] = field(default_factory=lambda: ["qkv", "proj"])
    lora_dropout: float = 0.1
    bias: str = "none"
    use_rslora: bool = False


@dataclass
class M2FTrainConfig:
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

    num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_sample_ratio: float = 0.75
    mask_coefficient: float = 5.0
    dice_coefficient: float = 5.0
    class_coefficient: float = 2.0
    no_object_coefficient: float = 0.1


class ModelDtype(Enum):
    """Precision of the computation."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


@dataclass
class ModelConfig:
    """Which ViT.

    Attributes:
        config_file: must be None; the model is named by `dino_hub`.
        pretrained_weights: a file of weights, in any layout that `dinov3.weights` reads.
        dino_hub: name of the model, such as `dinov3_vitl16`.
        pretrained: without a file, load timm's copy from the hub; if false, the weights are random.
    """

    config_file: str | None = None
    pretrained_weights: str | Path | None = None
    dino_hub: str | None = None
    pretrained: bool = True


@dataclass
class DatasetConfig:
    """Which images.

    Attributes:
        root: folder of the data set.
        train: name of the training set.
        val: name of the validation set.
    """

    root: str = MISSING
    train: str = ""
    val: str = ""


@dataclass
class DecoderConfig:
    """The segmentor behind the ViT: arguments of `build_segmentation_decoder` and `LinearHead`.

    Attributes:
        type: `m2f` or `linear`.
        backbone_out_layers: the feature layers. `m2f` needs four of them, so not the default.
        use_batchnorm: `linear`: whether there is a batch norm before the classifier.
        use_cls_token: `linear`: whether the class token is joined to every patch.
        use_backbone_norm: whether the ViT's final norm is applied to every feature layer.
        num_classes: number of classes.
        hidden_dim: `m2f`: channels of the head.
        dropout: `linear`: probability that a channel is dropped in training.
    """

    type: str = "m2f"
    backbone_out_layers: BackboneLayersSet = BackboneLayersSet.LAST
    use_batchnorm: bool = True
    use_cls_token: bool = False
    use_backbone_norm: bool = True
    num_classes: int = 150
    hidden_dim: int = 2048
    dropout: float = 0.1


@dataclass
class SchedulerConfig:
    """The learning rate over the training: arguments of `build_scheduler`.

    Attributes:
        type: name of the schedule.
        total_iter: number of steps of the training.
        constructor_kwargs: further keywords of the schedule.
    """

    type: str = "WarmupOneCycleLR"
    total_iter: int = 40_000
    constructor_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class OptimizerConfig:
    """AdamW.

    Attributes:
        lr: peak of the learning rate.
        beta1: decay of the mean of gradients.
        beta2: decay of the mean of their squares.
        weight_decay: decay of the weights.
        gradient_clip: largest norm of the gradient.
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 1e-2
    gradient_clip: float = 35.0


@dataclass
class TrainTransformConfig:
    """Augmentation: arguments of `make_segmentation_train_transforms`.

    Attributes:
        img_size: length of the shorter side after resizing; None keeps the image's.
        random_img_size_ratio_range: from and to: a random factor on it.
        crop_size: (height, width) of a random crop.
        flip_prob: probability of mirroring left and right.
    """

    img_size: int | None = None
    random_img_size_ratio_range: list[float] | None = None
    crop_size: list[int] | None = None
    flip_prob: float = 0.0


@dataclass
class EvalTransformConfig:
    """Preparation for evaluation: arguments of `make_segmentation_eval_transforms`.

    Attributes:
        img_size: length of the shorter side after resizing; None keeps the image's.
        tta_ratios: factors on it, one for each view of test-time augmentation.
    """

    img_size: int | None = None
    tta_ratios: list[float] = field(default_factory=lambda: [1.0])


@dataclass
class TransformConfig:
    """Transforms of images and labels.

    Attributes:
        train: of training.
        eval: of evaluation.
        mean: of the colours, for pixels from 0 to 255.
        std: of the colours.
    """

    train: TrainTransformConfig = field(default_factory=TrainTransformConfig)
    eval: EvalTransformConfig = field(default_factory=EvalTransformConfig)
    mean: list[float] = field(default_factory=lambda: [255 * value for value in (0.485, 0.456, 0.406)])
    std: list[float] = field(default_factory=lambda: [255 * value for value in (0.229, 0.224, 0.225)])


@dataclass
class TrainConfig:
    """The loss of the linear head: arguments of `MultiSegmentationLoss`.

    Attributes:
        diceloss_weight: weight of the Dice loss.
        celoss_weight: weight of the cross-entropy.
    """

    diceloss_weight: float = 0.0
    celoss_weight: float = 1.0


@dataclass
class EvalConfig:
    """Evaluation.

    Attributes:
        compute_metric_per_image: average the metrics over images instead of counting all pixels together.
        reduce_zero_label: label 0 means "unlabelled": it is ignored, and the classes are counted from 0.
        mode: `whole` or `slide`.
        crop_size: `slide`: height and width of the tiles.
        stride: `slide`: steps between tiles.
        eval_interval: number of steps between evaluations.
        use_tta: average over views of all `tta_ratios`, and their mirror images.
        max_val_samples: number of images to evaluate while training; 0 for all.
        num_visualizations: number of images whose predictions are drawn.
    """

    compute_metric_per_image: bool = False
    reduce_zero_label: bool = True
    mode: str = "slide"
    crop_size: int | None = 512
    stride: int | None = 341
    eval_interval: int = 40_000
    use_tta: bool = False
    max_val_samples: int = 0
    num_visualizations: int = 0


@dataclass
class SegmentationConfig:
    """A training or an evaluation of a segmentor.

    Attributes:
        model: the ViT.
        bs: batch size of one process.
        n_gpus: number of processes.
        num_workers: processes that load images, for each of them.
        model_dtype: precision of the computation.
        seed: of all random numbers.
        datasets: the images.
        metric_to_save: metric of which the best checkpoint is kept.
        decoder_head: the decoder.
        scheduler: learning rate over the training.
        optimizer: the optimizer.
        transforms: augmentation and normalisation.
        train: loss of the linear head.
        m2f_train: loss of Mask2Former.
        eval: evaluation.
        lora: low-rank adaptation of the ViT.
        output_dir: folder of all results.
        load_from: checkpoint of a segmentor to start with.
    """

    model: ModelConfig | None = None
    bs: int = 2
    n_gpus: int = 8
    num_workers: int = 6
    model_dtype: ModelDtype = ModelDtype.FLOAT32
    seed: int = 100
    datasets: DatasetConfig = field(default_factory=DatasetConfig)
    metric_to_save: str = "mIoU"
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
