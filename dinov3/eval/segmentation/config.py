"""Settings of segmentation."""

from dataclasses import dataclass, field


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
