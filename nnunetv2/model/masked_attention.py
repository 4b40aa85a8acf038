"""Masked attention of queries among the tokens of a plain transformer (Kerssies et al., EoMT, 2025,
https://arxiv.org/abs/2503.19108, section 3.3): a query attends to the patches that its mask covers, and to all tokens
that are no patches; all other tokens attend to everything."""

import torch
from torch import Tensor

from dinov3.eval.segmentation.models.utils.extent import resize


@torch.no_grad()
def attention_mask(masks: Tensor, grid: tuple[int, int], num_prefix_tokens: int, masked: Tensor | None) -> Tensor:
    """Return what is added to the attention's scores: 0 where a token attends, otherwise -∞.

    A query whose mask covers no patch still attends to the queries and to the class and register tokens.

    Args:
        masks: logits of the queries' masks, (B, Q, H, W).
        grid: (h, w) of the patches, to which the masks are resized; above 0 they cover a patch.
        num_prefix_tokens: number of class and register tokens.
        masked: whether the mask of a query applies, (B, Q); None: all do.

    Returns:
        (B, 1, N, N) for N tokens in the order prefix, queries, patches, of the type of `masks`.
    """
    hidden = resize(masks, grid).flatten(2) <= 0
    if masked is not None:
        hidden &= masked.unsqueeze(-1)
    first_patch = num_prefix_tokens + masks.shape[1]
    num_tokens = first_patch + hidden.shape[-1]
    mask = masks.new_zeros(len(masks), 1, num_tokens, num_tokens)
    mask[:, 0, num_prefix_tokens:first_patch, first_patch:].masked_fill_(hidden, -torch.inf)
    return mask


def draw_masked_queries(masks: Tensor, probability: float) -> Tensor | None:
    """Draw the queries of masks (B, Q, H, W) whose mask applies, each with a probability: (B, Q), or None for all."""
    if probability >= 1:
        return None
    return torch.rand(masks.shape[:2], device=masks.device) < probability
