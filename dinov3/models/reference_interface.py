"""The reference's attributes and methods on timm's DINOv3 (class `Eva`): `get_intermediate_layers`, `forward_features`.

Reference: Siméoni et al., "DINOv3", 2025, https://arxiv.org/abs/2508.10104.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from timm.models import Eva
from torch import Tensor, nn

from dinov3.models.features import get_vit_features


class ReferenceInterface(Eva):
    """timm's `Eva` as code written for the reference's ViT expects it.

    Args:
        timm_options: keywords of `Eva`.

    Attributes:
        n_blocks: number of blocks.
        num_heads: number of attention heads.
        patch_size: side of the patches in pixels.
        n_storage_tokens: number of storage (register) tokens.
        cls_norm: the class token's own norm: None, it shares the patches'.
    """

    def __init__(self, **timm_options: Any) -> None:
        super().__init__(**timm_options)
        self.n_blocks: int = len(self.blocks)
        self.num_heads: int = self.blocks[0].attn.num_heads
        self.patch_size: int = self.patch_embed.patch_size[0]
        self.n_storage_tokens: int = 0 if self.reg_token is None else self.reg_token.shape[1]
        self.cls_norm = None

    @property
    def storage_tokens(self) -> Tensor:
        """The storage tokens, (1, n_storage_tokens, embed_dim).

        Raises:
            AttributeError: there are none.
        """
        if self.reg_token is None:
            raise AttributeError("this ViT has no storage tokens")
        return self.reg_token

    @property
    def rope_embed(self) -> nn.Module:
        """The rotary encoding."""
        return self.rope

    def get_intermediate_layers(
        self,
        x: Tensor,
        *,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        return_extra_tokens: bool = False,
        norm: bool = True,
    ) -> tuple[Tensor | tuple[Tensor, ...], ...]:
        """Return the outputs of some blocks.

        Args:
            x: images, (B, C, H, W); the border that does not fill a patch is ignored.
            n: the last n blocks, or 0-based indices, taken in the order of the blocks.
            reshape: give maps (B, embed_dim, h, w) instead of tokens (B, h·w, embed_dim).
            return_class_token: also give the class token, (B, embed_dim).
            return_extra_tokens: also give the storage tokens, (B, n_storage_tokens, embed_dim).
            norm: apply the final norm to every output.

        Returns:
            One entry per block: the patches, or a tuple of these and what was asked for beside them.
        """
        indices = n if isinstance(n, int) else sorted(n)
        output_fmt = "NCHW" if reshape else "NLC"
        entries = []
        for patches, prefix in get_vit_features(self, self._crop(x), indices, True, norm=norm, output_fmt=output_fmt):
            entry = (patches,)
            if return_class_token:
                entry += (prefix[:, 0],)
            if return_extra_tokens:
                entry += (prefix[:, 1:],)
            entries.append(entry if len(entry) > 1 else patches)
        return tuple(entries)

    def forward_features(self, x: Tensor | list[Tensor], masks: Tensor | list | None = None) -> dict | list[dict]:
        """Run all blocks.

        Args:
            x: images, (B, C, H, W), or a list of such.
            masks: True where a patch is replaced by the mask token, (B, h·w); with a list, one or None for each.

        Returns:
            `x_norm_clstoken` (B, embed_dim), `x_storage_tokens` (B, n_storage_tokens, embed_dim), `x_norm_patchtokens`
            (B, h·w, embed_dim), `x_prenorm` (B, all tokens, embed_dim) before the final norm, and `masks`; with a list,
            a list of these.
        """
        if isinstance(x, list):
            return [self.forward_features(*pair) for pair in zip(x, masks or [None] * len(x), strict=True)]
        with self._masked(masks):
            ((patches, prefix),) = get_vit_features(self, self._crop(x), 1, True, norm=False, output_fmt="NLC")
        prenorm = torch.cat([prefix, patches], dim=1)
        normed = self.norm(prenorm)
        num_prefix_tokens = prefix.shape[1]
        return {
            "x_norm_clstoken": normed[:, 0],
            "x_storage_tokens": normed[:, 1:num_prefix_tokens],
            "x_norm_patchtokens": normed[:, num_prefix_tokens:],
            "x_prenorm": prenorm,
            "masks": masks,
        }

    def forward(self, *args: Any, is_training: bool = False, **kwargs: Any) -> Tensor | dict | list:
        """Return the normalised class token, (B, embed_dim); with `is_training` what `forward_features` does."""
        features = self.forward_features(*args, **kwargs)
        return features if is_training else self.head(features["x_norm_clstoken"])

    def _crop(self, x: Tensor) -> Tensor:
        height, width = (side // self.patch_size * self.patch_size for side in x.shape[-2:])
        return x[..., :height, :width]

    @contextlib.contextmanager
    def _masked(self, masks: Tensor | None) -> Iterator[None]:
        if masks is None:
            yield
            return

        def replace(_module: nn.Module, _inputs: tuple, patches: Tensor) -> Tensor:
            return torch.where(masks.view(*patches.shape[:-1], 1), self.mask_token.to(patches.dtype), patches)

        handle = self.patch_embed.register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()
