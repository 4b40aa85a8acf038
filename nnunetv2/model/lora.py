"""Low-rank adaptation of a backbone with peft (Hu et al., "LoRA", 2021, https://arxiv.org/abs/2106.09685)."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

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
    from peft import LoraConfig, get_peft_model  # takes a second to load, which only LoRA should

    if rank < 1:
        raise ValueError(f"LoRA rank must be at least 1, got {rank}")
    linear = {name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)}
    available = sorted({name.split(".")[-1] for name in linear if name.startswith("blocks.")})
    unmatched = [target for target in target_modules if target not in available]
    if unmatched or not target_modules:
        raise ValueError(f"LoRA targets {list(target_modules)} match no layer of the blocks; allowed: {available}")
    pattern = r"blocks\.\d+\.(.+\.)?(" + "|".join(map(re.escape, target_modules)) + ")"
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=pattern)
    return get_peft_model(backbone, config)


def disable_lora(backbone: "PeftModel") -> nn.Module:
    """Merge the adapters into the layers they adapt and return the plain backbone."""
    return backbone.merge_and_unload()
