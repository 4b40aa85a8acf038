"""Low-rank adaptation of a backbone with peft (Hu et al., "LoRA", 2021, https://arxiv.org/abs/2106.09685)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from dinov3.models.lora import add_lora

if TYPE_CHECKING:
    from peft import PeftModel


def enable_lora(
    backbone: nn.Module,
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.05,
    target_modules: Sequence[str] = ("qkv",),
) -> "PeftModel":
    """Add low-rank adapters to linear layers of the transformer blocks; only the adapters remain trainable.

    Args:
        backbone: a timm ViT.
        rank: rank of the adapters.
        alpha: the adapters' output is scaled by `alpha / rank`.
        dropout: dropout on the adapters' input.
        target_modules: last names of the layers to adapt, such as `qkv`, `proj`, `fc1`. They are looked for only
            inside the blocks: `proj` does not match the convolution of the patch embedding.

    Returns:
        The wrapped backbone; its attributes and methods are those of the backbone.

    Raises:
        ValueError: the rank is not positive, or a target matches no linear layer of a block.
    """
    return add_lora(backbone, rank, alpha, dropout, target_modules)


def disable_lora(backbone: "PeftModel") -> nn.Module:
    """Merge the adapters into the layers they adapt and return the plain backbone."""
    return backbone.merge_and_unload()
