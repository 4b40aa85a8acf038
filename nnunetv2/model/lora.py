"""Low-rank adaptation of a backbone with peft (Hu et al., "LoRA", 2021, https://arxiv.org/abs/2106.09685)."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from dinov3.models.lora import add_lora

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)
DEFAULT_TARGETS = ("qkv",)


def enable_lora(
    backbone: nn.Module,
    rank: int = 8,
    lora_alpha: float = 16.0,
    lora_dropout: float = 0.05,
    target_modules: Sequence[str] | None = None,
    use_rslora: bool = False,
    used_blocks: int | None = None,
) -> "PeftModel":
    """Add low-rank adapters to linear layers of the transformer blocks; only the adapters remain trainable.

    How many parameters these are is logged.

    Args:
        backbone: a timm ViT.
        rank: rank of the adapters.
        lora_alpha: the adapters' output is scaled by `lora_alpha / rank`.
        lora_dropout: dropout on the adapters' input.
        target_modules: last names of the layers to adapt, such as `qkv`, `proj`, `fc1`; by default `qkv`. They are
            looked for only inside the blocks: `proj` does not match the convolution of the patch embedding.
        use_rslora: scale by `lora_alpha / √rank` instead.
        used_blocks: number of blocks that are run; the adapters of later ones do not train. By default all.

    Returns:
        The wrapped backbone; its attributes and methods are those of the backbone.

    Raises:
        ValueError: the backbone has adapters, the rank is not positive, or a target matches no linear layer of a block.
    """
    if _has_adapters(backbone):
        raise ValueError("LoRA is already enabled; call disable_lora() first")
    targets = DEFAULT_TARGETS if target_modules is None else target_modules
    adapted = add_lora(backbone, rank, lora_alpha, lora_dropout, targets, use_rslora=use_rslora)
    if used_blocks is not None:
        adapted.blocks[used_blocks:].requires_grad_(False)
    names = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    layers = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in names})
    trainable, total = adapted.get_nb_trainable_parameters()
    logger.info(
        "LoRA on %s: %s of the backbone's %s parameters train", ", ".join(layers), f"{trainable:,}", f"{total:,}"
    )
    return adapted


def disable_lora(backbone: "nn.Module | PeftModel") -> nn.Module:
    """Merge the adapters into the layers they adapt and return the plain backbone.

    A backbone without adapters is returned as it is, with a logged warning.
    """
    if not _has_adapters(backbone):
        logger.warning("LoRA is not enabled; disable_lora() has no effect")
        return backbone
    return backbone.merge_and_unload()


def _has_adapters(backbone: "nn.Module | PeftModel") -> bool:
    return hasattr(backbone, "merge_and_unload")  # peft, where the class is, takes a second to load
