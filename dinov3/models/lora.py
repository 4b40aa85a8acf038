"""Low-rank adaptation of a ViT with peft (Hu et al., "LoRA", 2021, https://arxiv.org/abs/2106.09685)."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from peft import PeftModel

BLOCKS = r"blocks\.\d+\.(.+\.)?"
ATTENTION = r"blocks\.\d+\.attn\."


def add_lora(
    backbone: nn.Module,
    r: int,
    lora_alpha: float,
    lora_dropout: float,
    target_modules: Sequence[str],
    within: str = BLOCKS,
    **options: Any,
) -> "PeftModel":
    """Add low-rank adapters to linear layers of a ViT; only the adapters remain trainable.

    Args:
        backbone: a timm ViT.
        r: rank of the adapters.
        lora_alpha: the adapters' output is scaled by `lora_alpha / r`.
        lora_dropout: dropout on the adapters' input.
        target_modules: last names of the layers to adapt, such as `qkv`, `proj`.
        within: regular expression of what stands before these names: by default anything inside of the blocks, so that
            `proj` does not match the convolution of the patch embedding.
        options: further keywords of peft's `LoraConfig`, such as `use_rslora`.

    Returns:
        The wrapped backbone; its attributes and methods are those of the backbone.

    Raises:
        ValueError: the rank is not positive, or a target matches no linear layer.
    """
    from peft import LoraConfig, get_peft_model  # takes a second to load, which only LoRA should

    if r < 1:
        raise ValueError(f"LoRA rank must be at least 1, got {r}")
    linear = [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)]
    matches = [match for match in (re.fullmatch(f"{within}([^.]+)", name) for name in linear) if match]
    available = sorted({match[match.lastindex] for match in matches})
    unmatched = [target for target in target_modules if target not in available]
    if unmatched or not target_modules:
        raise ValueError(f"LoRA targets {list(target_modules)} match no layer of the blocks; allowed: {available}")
    pattern = f"{within}({'|'.join(map(re.escape, target_modules))})"
    config = LoraConfig(r=r, lora_alpha=lora_alpha, lora_dropout=lora_dropout, target_modules=pattern, **options)
    return get_peft_model(backbone, config)
