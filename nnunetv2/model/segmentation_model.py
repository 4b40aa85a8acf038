"""The model that every decoder shares: normalise → pad → backbone features → decoder → crop."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from dinov3.eval.segmentation.models.utils.extent import pad_to_multiple
from dinov3.eval.segmentation.precision import DTYPES, autocast_for
from dinov3.models.feature_layers import BackboneLayersSet, ends_of_quarters, layer_indices
from dinov3.models.features import get_vit_features
from dinov3.models.freezing import eval_if_frozen
from nnunetv2.model.backbone import create_backbone
from nnunetv2.model.lora import disable_lora, enable_lora
from nnunetv2.model.parameter_counts import count_parameters_per_part


class ViTSegmentationModel(nn.Module):
    """A ViT and a decoder. Subclasses build the decoder in their constructor and run it in `decode`.

    Args:
        backbone_name: a family of the registry, or `timm:<name>`.
        backbone_size: a size of the family.
        num_classes: number of classes.
        checkpoint_path: a file of pretrained weights for the backbone.
        freeze_backbone: train the decoder only; ignored with LoRA.
        use_lora: train low-rank adapters in the backbone's blocks, and the decoder.
        lora_rank: rank of the adapters.
        lora_alpha: the adapters are scaled by `lora_alpha / lora_rank`.
        lora_dropout: dropout on the adapters' input.
        lora_target_modules: the layers to adapt (default `qkv`).
        input_channels: channels of the images.
        pretrained: without a file, load timm's hub copy; if false too, the backbone is random (one logged warning).
        query_bias: whether DINOv3's attention has a query bias; by default, if the file holds one.
        out_layers: 0-based indices of the feature layers, the blocks fed to the decoder; by default four even quarters.
        input_norm: `{"mean": [...], "std": [...]}`, one number per channel, applied to the input; None for none.
        precision: `float32`, `float16` or `bfloat16`: of the whole forward pass, in training and in prediction.
        deep_supervision: must be false; nnU-Net passes it.
        use_rslora: scale the adapters by `lora_alpha / √lora_rank` instead.

    Attributes:
        backbone: the ViT.
        feature_indices: 0-based indices of the feature layers.
        num_classes: number of classes.
        patch_size: side of the backbone's patches in pixels; also `backbone_patch_size`.
        mode: `frozen`, `lora` or `full`.

    Raises:
        ValueError: a value that cannot work; the message names it and what is allowed.
        TypeError: an unknown keyword.
    """

    # Depth of the backbone to its feature layers; of other depths they are found in the same way.
    LAYER_INDICES: ClassVar[dict[int, list[int]]] = {depth: ends_of_quarters(depth) for depth in (12, 24)}
    PADDING: ClassVar[str] = "reflect"  # see `pad_to_multiple`

    def __init__(
        self,
        backbone_name: str = "dinov3",
        backbone_size: str = "large",
        num_classes: int = 1,
        checkpoint_path: str | Path | None = None,
        freeze_backbone: bool = True,
        use_lora: bool = False,
        lora_rank: int = 8,
        lora_alpha: float = 16.0,
        lora_dropout: float = 0.05,
        lora_target_modules: Sequence[str] | None = None,
        *,
        input_channels: int = 3,
        pretrained: bool = False,
        query_bias: bool | None = None,
        out_layers: Sequence[int] | None = None,
        input_norm: dict[str, list[float]] | None = None,
        precision: str = "float32",
        deep_supervision: bool = False,
        use_rslora: bool = False,
    ) -> None:
        super().__init__()
        if deep_supervision:
            raise ValueError("deep_supervision must be false: the decoder has one output")
        if precision not in DTYPES:
            raise ValueError(f"unknown precision {precision!r}; allowed: {', '.join(DTYPES)}")
        self.num_classes = num_classes
        self.input_channels = input_channels
        self.precision = precision
        self.backbone, self.patch_size, _ = create_backbone(
            backbone_name, backbone_size, checkpoint_path, pretrained, input_channels, query_bias
        )
        self.embed_dim: int = self.backbone.embed_dim
        self.feature_indices = self.choose_layers(len(self.backbone.blocks), out_layers)
        self._set_input_norm(input_norm)
        self.mode = "full"
        if use_lora:
            self.enable_lora(lora_rank, lora_alpha, lora_dropout, lora_target_modules, use_rslora)
        elif freeze_backbone:
            self.freeze_backbone()
        else:
            self._freeze_unused()

    @classmethod
    def choose_layers(cls, depth: int, out_layers: Sequence[int] | None = None) -> list[int]:
        """Return the 0-based, ascending indices of the feature layers.

        Args:
            depth: number of blocks of the backbone.
            out_layers: the user's choice; None for the default: `LAYER_INDICES`, or the ends of four even quarters.

        Raises:
            ValueError: an index does not exist, or the order is not ascending.
        """
        if out_layers is None:
            return cls.LAYER_INDICES.get(depth) or ends_of_quarters(depth)
        return layer_indices(out_layers, depth)

    def _set_input_norm(self, input_norm: dict[str, list[float]] | None) -> None:
        # buffers, so that they move with the model and prediction does what training did
        norm = input_norm or {"mean": [0.0] * self.input_channels, "std": [1.0] * self.input_channels}
        for name in ("mean", "std"):
            if len(norm[name]) != self.input_channels:
                raise ValueError(
                    f"input_norm has {len(norm[name])} values of {name} for {self.input_channels} channels"
                )
            self.register_buffer(f"input_{name}", torch.tensor(norm[name], dtype=torch.float32).view(1, -1, 1, 1))

    @property
    def backbone_patch_size(self) -> int:
        """Side of the backbone's patches in pixels: another name of `patch_size`."""
        return self.patch_size

    @property
    def padding_multiple(self) -> int:
        """Images are padded to multiples of this number of pixels."""
        return self.patch_size

    def freeze_backbone(self) -> None:
        """Freeze the backbone; it stays in evaluation mode whatever `train()` says."""
        self.mode = "frozen"
        self.backbone.requires_grad_(False)
        self.backbone.eval()

    def _freeze_unused(self) -> None:
        # Blocks behind the deepest feature layer, and what only a classifier needs, are never run. They stay, so that
        # weights load strictly, but a trainable parameter without a gradient would stop distributed training.
        self.backbone.blocks[self.feature_indices[-1] + 1 :].requires_grad_(False)
        norm_is_used = isinstance(self.backbone.norm, nn.Identity)  # see `get_vit_features`
        for name in ("attn_pool", "head") if norm_is_used else ("attn_pool", "head", "fc_norm"):
            module = getattr(self.backbone, name, None)
            if module is not None:
                module.requires_grad_(False)

    def enable_lora(
        self,
        rank: int = 8,
        lora_alpha: float = 16.0,
        lora_dropout: float = 0.05,
        target_modules: Sequence[str] | None = None,
        use_rslora: bool = False,
    ) -> None:
        """Wrap the backbone with low-rank adapters; only these and the decoder train (see `lora.enable_lora`).

        Raises:
            ValueError: see `lora.enable_lora`.
        """
        used_blocks = self.feature_indices[-1] + 1
        self.backbone = enable_lora(
            self.backbone, rank, lora_alpha, lora_dropout, target_modules, use_rslora, used_blocks
        )
        self.mode = "lora"
        self.backbone.train(self.training)  # it was in evaluation mode if it was frozen

    def disable_lora(self) -> None:
        """Merge the adapters into the backbone, which is frozen from then on; without adapters nothing changes."""
        self.backbone = disable_lora(self.backbone)
        if self.mode == "lora":
            self.freeze_backbone()

    def train(self, mode: bool = True) -> "ViTSegmentationModel":
        """Set the training mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        eval_if_frozen(self.backbone)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Segment images.

        Args:
            x: images as nnU-Net normalises them, (B, input_channels, H, W); H and W of at least 1.

        Returns:
            Logits, (B, num_classes, H, W), float32.

        Raises:
            ValueError: the input has another shape than that.
        """
        self.check_input(x)
        with autocast_for(x.device, self.precision):
            padded = self.normalise_and_pad(x)
            logits = self.decode(self.encode(padded), padded.shape[-2:])
        return self.crop(logits, x.shape[-2:])

    def normalise_and_pad(self, x: Tensor) -> Tensor:
        """Apply the input normalisation to images (B, C, H, W), and pad them to multiples of `padding_multiple`."""
        return pad_to_multiple((x - self.input_mean) / self.input_std, self.padding_multiple, self.PADDING)

    def check_input(self, x: Tensor) -> None:
        """Check that images have the shape (B, input_channels, H, W).

        Raises:
            ValueError: they have not.
        """
        if x.ndim != 4 or x.shape[1] != self.input_channels:
            raise ValueError(f"expected images of shape (B, {self.input_channels}, H, W), got {tuple(x.shape)}")

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return what the decoder gets of normalised images (B, C, H, W): maps (B, embed_dim, H / patch, W / patch)."""
        return get_vit_features(self.backbone, x, self.feature_indices)

    def decode(self, features: list[Tensor], output_size: Sequence[int]) -> Tensor:
        """Map features to logits (B, num_classes, *output_size); every subclass brings its decoder here."""
        raise TypeError(f"{type(self).__name__} has no decoder: subclasses of ViTSegmentationModel define `decode`")

    def crop(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """Crop the logits of padded images to the size of the images: (B, num_classes, *size), float32."""
        height, width = size
        return logits[..., :height, :width].float()

    def print_trainable_parameters(self, detailed: bool = False) -> None:
        """Print total and trainable parameters, with `detailed` per part (direct submodule) as well."""
        for name, (total, trainable) in count_parameters_per_part(self).items():
            if detailed or name == "total":
                print(f"{name}: {total:,} parameters, {trainable:,} trainable ({trainable / total:.2%})")


class LastLayerModel(ViTSegmentationModel):
    """A model whose only feature layer is the last block, unless `out_layers` names others."""

    @classmethod
    def choose_layers(cls, depth: int, out_layers: Sequence[int] | None = None) -> list[int]:
        """Return the indices of the feature layers (see `ViTSegmentationModel`)."""
        return layer_indices(BackboneLayersSet.LAST if out_layers is None else out_layers, depth)
