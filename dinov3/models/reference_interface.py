"""The reference's interface on timm's ViTs: attributes, `get_intermediate_layers`, `forward_features`.

Reference: Siméoni et al., "DINOv3", 2025, https://arxiv.org/abs/2508.10104.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from timm.models import Eva, VisionTransformer
from torch import Tensor, nn

from dinov3.models.timm_dinov3 import is_dinov3, match_reference


class ReferenceInterface:
    """What code written for the reference's ViT expects, for a timm ViT that inherits it."""

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def num_heads(self) -> int:
        """Number of attention heads."""
        return self.blocks[0].attn.num_heads

    @property
    def patch_size(self) -> int:
        """Side of the patches in pixels."""
        return self.patch_embed.patch_size[0]

    @property
    def n_storage_tokens(self) -> int:
        """Number of storage (register) tokens."""
        return 0 if getattr(self, "reg_token", None) is None else self.reg_token.shape[1]

    @property
    def storage_tokens(self) -> Tensor:
        """The storage tokens, (1, n_storage_tokens, embed_dim).

        Raises:
            AttributeError: there are none.
        """
        if not self.n_storage_tokens:
            raise AttributeError("this ViT has no storage tokens")
        return self.reg_token

    @property
    def rope_embed(self) -> nn.Module | None:
        """The rotary encoding."""
        return getattr(self, "rope", None)

    @property
    def cls_norm(self) -> None:
        """The class token's own norm: there is none, it shares the patches'."""
        return None

    def final_norm(self, tokens: Tensor) -> Tensor:
        """The norm behind the last block; ViTs that average over the patches have it as `fc_norm`."""
        return self.fc_norm(tokens) if isinstance(self.norm, nn.Identity) else self.norm(tokens)

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

        Raises:
            ValueError: the ViT has no class token, which was asked for.
        """
        if return_class_token and self.cls_token is None:
            raise ValueError("this ViT has no class token")
        x = self._crop(x)
        grid = tuple(side // self.patch_size for side in x.shape[-2:])
        outputs = []
        for patches, prefix in self._blocks_outputs(x, n):
            tokens = (
                self.final_norm(torch.cat([prefix, patches], dim=1)) if norm else torch.cat([prefix, patches], dim=1)
            )
            prefix, patches = tokens.split([prefix.shape[1], patches.shape[1]], dim=1)
            extra = (prefix[:, 0],) if return_class_token else ()
            if return_extra_tokens:
                extra = (*extra, prefix[:, prefix.shape[1] - self.n_storage_tokens :])
            if reshape:
                patches = patches.transpose(1, 2).unflatten(-1, grid)
            outputs.append((patches, *extra) if extra else patches)
        return tuple(outputs)

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
            patches, prefix = self._blocks_outputs(self._crop(x), 1)[0]
        prenorm = torch.cat([prefix, patches], dim=1)
        normed = self.final_norm(prenorm)
        number = prefix.shape[1]
        return {
            "x_norm_clstoken": normed[:, 0],
            "x_storage_tokens": normed[:, number - self.n_storage_tokens : number],
            "x_norm_patchtokens": normed[:, number:],
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

    def _blocks_outputs(self, x: Tensor, n: int | Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        return self.forward_intermediates(
            x,
            indices=n if isinstance(n, int) else sorted(n),
            return_prefix_tokens=True,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )

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


class ReferenceEva(ReferenceInterface, Eva):
    """timm's `Eva` (DINOv3 and others) with the reference's interface."""


class ReferenceVisionTransformer(ReferenceInterface, VisionTransformer):
    """timm's `VisionTransformer` (DINOv2, MAE and others) with the reference's interface."""


CLASSES = {Eva: ReferenceEva, VisionTransformer: ReferenceVisionTransformer}


def wear_reference_interface(model: nn.Module) -> nn.Module:
    """Give a timm ViT the reference's interface, in place; a DINOv3 is also made to compute like the reference.

    Args:
        model: a timm ViT (`Eva` or `VisionTransformer`), also with adapters of peft.

    Returns:
        The same model.

    Raises:
        ValueError: it is a model of another class.
    """
    vit = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(vit, ReferenceInterface):
        if type(vit) not in CLASSES:
            allowed = " or ".join(known.__name__ for known in CLASSES)
            raise ValueError(f"the ViT must be timm's {allowed}, found {type(vit).__name__}")
        vit.__class__ = CLASSES[type(vit)]
        if is_dinov3(vit):
            match_reference(vit)
    return model
