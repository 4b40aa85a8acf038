"""EoMT, the encoder-only mask transformer (Kerssies et al., "Your ViT is Secretly an Image Segmentation Model", 2025,
https://arxiv.org/abs/2503.19108).

image → blocks of the ViT → its last blocks, with queries beside the tokens → per query a class and a mask at stride 4 →
dense logits
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinov3.models.features import final_norm, get_vit_tokens
from nnunetv2.model.annealed_masks import AnnealedMaskModel
from nnunetv2.model.mask_classification import resolve_options
from nnunetv2.model.option_checks import AUTO
from nnunetv2.model.query_prediction import Block, Prediction, QueryDecoder
from nnunetv2.model.segmentation_model import LastLayerModel

__all__ = ["EoMTSegmentationModel", "create_segmentation_model", "resolve_options"]


class EoMTSegmentationModel(AnnealedMaskModel, LastLayerModel):
    """EoMT on any ViT of the registry. The ViT does the decoding: all of it trains, or adapters in its blocks.

    Args:
        backbone_name: a family of the registry, or `timm:<name>`.
        backbone_size: a size of the family.
        num_classes: number of classes, or of regions.
        checkpoint_path: a file of pretrained weights for the backbone.
        freeze_backbone: must be false, unless there is LoRA.
        backbone_arguments: the next ones of `ViTSegmentationModel`.
        num_queries: number of queries.
        num_blocks: number of the ViT's last blocks that the queries run through; `auto`: see `num_query_blocks`.
        regions: whether the classes are regions, which may overlap.
        backbone_options: see `ViTSegmentationModel`; the feature layer is the last block.

    Raises:
        ValueError: fewer queries than classes, a frozen ViT, or an impossible number of blocks.
    """

    def __init__(
        self,
        backbone_name: str = "dinov3",
        backbone_size: str = "large",
        num_classes: int = 1,
        checkpoint_path: str | Path | None = None,
        freeze_backbone: bool = False,
        *backbone_arguments: Any,
        num_queries: int = 100,
        num_blocks: int | str = AUTO,
        regions: bool = False,
        **backbone_options: Any,
    ) -> None:
        super().__init__(
            backbone_name,
            backbone_size,
            num_classes,
            checkpoint_path,
            freeze_backbone,
            *backbone_arguments,
            num_queries=num_queries,
            regions=regions,
            **backbone_options,
        )
        if self.mode == "frozen":
            raise ValueError(
                "EoMT cannot train with a frozen backbone, whose blocks do the decoding: set model.freeze_backbone="
                "false or lora.enabled=true, or take PMT, which is made for a frozen one (nnunetv2.model.model_pmt, "
                "--config pmt)"
            )
        depth = len(self.backbone.blocks)
        self.decoder = QueryDecoder(
            self.embed_dim, num_classes, num_queries, num_query_blocks(num_blocks, depth), self.patch_size
        )

    @property
    def resolved_options(self) -> dict[str, int]:
        """The options that may be `auto`, with what they stand for: plans hold these."""
        return {"num_blocks": self.num_masked_blocks}

    @classmethod
    def choose_layers(cls, depth: int, out_layers: Sequence[int] | None = None) -> list[int]:
        """Return the index of the last block.

        Raises:
            ValueError: `out_layers` names others.
        """
        indices = super().choose_layers(depth, out_layers)
        if indices != [depth - 1]:
            raise ValueError(f"EoMT reads the last block: out_layers must be [{depth - 1}], found {indices}")
        return indices

    def predict_layers(self, x: Tensor, first_layer: int) -> list[Prediction]:
        """Predict from normalised images (B, C, H, W), of the layers from `first_layer` on."""
        grid = self.grid_of(x)
        last_plain = len(self.backbone.blocks) - self.num_masked_blocks - 1
        (tokens,) = get_vit_tokens(self.backbone, x, [last_plain], norm=False)
        return self.decoder.decode(tokens, grid, final_norm(self.backbone), self._query_blocks(grid), first_layer)

    def _query_blocks(self, grid: tuple[int, int]) -> list[Block]:
        """The blocks that the queries run through, each with its rotary positions, if the ViT has any."""
        depth = len(self.backbone.blocks)
        rope = getattr(self.backbone, "rope", None)
        if rope is None:
            return [partial(_run_block, block) for block in self.backbone.blocks[depth - self.num_masked_blocks :]]
        positions = _with_queries(rope.get_embed(grid), self.num_queries)
        of_block = positions if self.backbone.rope_mixed else [positions] * depth
        return [
            partial(_run_block, self.backbone.blocks[number], rope=of_block[number])
            for number in range(depth - self.num_masked_blocks, depth)
        ]


def _run_block(block: Block, tokens: Tensor, mask: Tensor | None, **positions: Tensor) -> Tensor:
    return block(tokens, attn_mask=mask, **positions)


def _with_queries(rope: Tensor, num_queries: int) -> Tensor:
    """Put positions of queries, which are not rotated, before sines and cosines (…, h·w, 2 · channels of a head).

    timm's attention takes all tokens behind the class and register tokens for patches.
    """
    sines, cosines = rope.new_zeros(2, *rope.shape[:-2], num_queries, rope.shape[-1] // 2).unbind()
    return torch.cat([torch.cat([sines, cosines + 1], dim=-1), rope], dim=-2)


def num_query_blocks(num_blocks: int | str, depth: int) -> int:
    """The number of a ViT's last blocks that queries run through.

    Args:
        num_blocks: the user's choice; `auto` for the paper's: 3 for 12 blocks, 4 for 24, 5 for 40 and, in between, that
            of the next smaller of these; a quarter of fewer than 12 blocks.
        depth: number of the ViT's blocks.

    Raises:
        ValueError: it is not `auto` or at least 1, or leaves no block without queries.
    """
    if num_blocks == AUTO:
        return next((number for least, number in ((40, 5), (24, 4), (12, 3)) if depth >= least), max(1, depth // 4))
    if isinstance(num_blocks, str) or not 1 <= num_blocks < depth:
        raise ValueError(f"num_blocks must be auto or from 1 to {depth - 1}, found {num_blocks!r}")
    return num_blocks


create_segmentation_model = EoMTSegmentationModel
