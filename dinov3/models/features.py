"""Features of a plain ViT of timm, also under peft: the outputs of some blocks, after the final norm."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def get_vit_features(
    model: nn.Module,
    x: Tensor,
    indices: int | Sequence[int],
    return_prefix_tokens: bool = False,
    *,
    norm: bool = True,
    output_fmt: str = "NCHW",
) -> list[Tensor] | list[tuple[Tensor, Tensor]]:
    """Run a ViT up to the deepest of some blocks and return their outputs.

    Args:
        model: a plain ViT of timm.
        x: images, (B, C, H, W), H and W multiples of the patch size.
        indices: 0-based indices of blocks, ascending; or the number of the last blocks.
        return_prefix_tokens: also return the class and register tokens, class token first.
        norm: apply the final norm to every output.
        output_fmt: `NCHW`: feature maps (B, embed_dim, H / patch, W / patch); `NLC`: patch tokens
            (B, H / patch · W / patch, embed_dim).

    Returns:
        For each block its features; with `return_prefix_tokens` pairs of these and the prefix tokens,
        (B, number of prefix tokens, embed_dim).
    """
    outputs = model.forward_intermediates(
        x,
        indices=indices,
        norm=norm,
        stop_early=True,
        intermediates_only=True,
        return_prefix_tokens=return_prefix_tokens,
        output_fmt=output_fmt,
    )
    if not norm or final_norm(model) is model.norm:
        return outputs
    # where timm does not apply it here
    channels = 1 if output_fmt == "NCHW" else -1
    if return_prefix_tokens:
        return [(_norm(model.fc_norm, patches, channels), model.fc_norm(prefix)) for patches, prefix in outputs]
    return [_norm(model.fc_norm, patches, channels) for patches in outputs]


def get_vit_tokens(model: nn.Module, x: Tensor, indices: Sequence[int], *, norm: bool = True) -> list[Tensor]:
    """Run a ViT up to the deepest of some blocks and return all tokens that they put out.

    Args:
        model: a plain ViT of timm.
        x: images, (B, C, H, W), H and W multiples of the patch size.
        indices: 0-based indices of blocks, ascending.
        norm: apply the final norm to every output.

    Returns:
        Per block (B, prefix + H / patch · W / patch, embed_dim): class and register tokens, where there are any, then
        patches.
    """
    if not model.num_prefix_tokens:
        return get_vit_features(model, x, indices, norm=norm, output_fmt="NLC")
    pairs = get_vit_features(model, x, indices, return_prefix_tokens=True, norm=norm, output_fmt="NLC")
    return [torch.cat([prefix, patches], dim=1) for patches, prefix in pairs]


def final_norm(model: nn.Module) -> nn.Module:
    """The final norm of a ViT: ViTs that average over the patches have it behind the average."""
    return model.fc_norm if isinstance(model.norm, nn.Identity) else model.norm


def _norm(norm: nn.Module, x: Tensor, channels: int) -> Tensor:
    return norm(x.movedim(channels, -1)).movedim(-1, channels)
