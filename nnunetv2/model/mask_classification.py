"""Networks of mask classification: per query a class and a mask (Cheng et al., "MaskFormer", 2021,
https://arxiv.org/abs/2107.06278).

normalise → pad → queries → crop; in evaluation mode dense logits follow
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dinov3.eval.segmentation.m2f_targets import queries_to_logits
from dinov3.eval.segmentation.models.utils.extent import crop_output
from dinov3.eval.segmentation.precision import autocast_for
from nnunetv2.model.segmentation_model import ViTSegmentationModel

Queries = dict[str, Tensor | list[dict[str, Tensor]]]


class MaskClassificationModel(ViTSegmentationModel):
    """A ViT with queries. Subclasses define `predict_queries`.

    In training mode it returns queries, which the loss of mask classification compares with masks; in evaluation mode
    dense logits, as nnU-Net expects them.

    Args:
        backbone_name: a family of the registry, or `timm:<name>`.
        backbone_size: a size of the family.
        num_classes: number of classes, or of regions.
        backbone_arguments: the next ones of `ViTSegmentationModel`.
        num_queries: number of queries.
        regions: whether the classes are regions, which may overlap.
        backbone_options: see `ViTSegmentationModel`.

    Attributes:
        num_queries: number of queries.
        regions: whether the classes are regions.

    Raises:
        ValueError: fewer queries than classes (every class of an image needs one), or see `ViTSegmentationModel`.
    """

    def __init__(
        self,
        backbone_name: str = "dinov3",
        backbone_size: str = "large",
        num_classes: int = 1,
        *backbone_arguments: Any,
        num_queries: int = 100,
        regions: bool = False,
        **backbone_options: Any,
    ) -> None:
        if num_queries < num_classes:
            raise ValueError(f"num_queries must be at least the number of classes ({num_classes}), found {num_queries}")
        super().__init__(backbone_name, backbone_size, num_classes, *backbone_arguments, **backbone_options)
        self.num_queries = num_queries
        self.regions = regions

    @property
    def num_masked_blocks(self) -> int:
        """Number of blocks whose masked attention can be annealed away in training; here none."""
        return 0

    def set_mask_probabilities(self, probabilities: Sequence[float]) -> None:
        """Set how likely the masks of queries apply in training; in evaluation mode none does.

        Args:
            probabilities: one per masked block, from 0 (no query is masked) to 1 (every query is).

        Raises:
            ValueError: another number of them, or one that is not in [0, 1].
        """
        self.check_mask_probabilities(probabilities)

    def check_mask_probabilities(self, probabilities: Sequence[float]) -> None:
        """Check what `set_mask_probabilities` is given.

        Raises:
            ValueError: see there.
        """
        if len(probabilities) != self.num_masked_blocks or not all(0 <= p <= 1 for p in probabilities):
            raise ValueError(
                f"mask probabilities must be {self.num_masked_blocks} numbers in [0, 1], found {list(probabilities)}"
            )

    def forward(self, x: Tensor) -> Queries | Tensor:
        """Segment images.

        Args:
            x: images as nnU-Net normalises them, (B, input_channels, H, W).

        Returns:
            In training mode queries (see `forward_queries`); in evaluation mode logits, (B, num_classes, H, W),
            float32, whose softmax (for regions: sigmoid) gives the probabilities (see `queries_to_logits`).
        """
        if self.training:
            return self.forward_queries(x)
        return self.dense_logits(self._at_the_extent_of(x, self.predict_last), x.shape[-2:])

    def forward_queries(self, x: Tensor) -> Queries:
        """Return `pred_masks` (B, Q, h, w), `pred_logits` (B, Q, num_classes + 1) and `aux_outputs`, a list of these.

        h and w are those of the image at a stride of about 4; "no object" is the last class.

        Args:
            x: images, (B, input_channels, H, W).

        Raises:
            ValueError: the input has another shape than that.
        """
        return self._at_the_extent_of(x, self.predict_queries)

    def _at_the_extent_of(self, x: Tensor, predict: Callable[[Tensor], Queries]) -> Queries:
        self.check_input(x)
        with autocast_for(x.device, self.precision):
            padded = self.normalise_and_pad(x)
            queries = predict(padded)
        return crop_output(queries, padded.shape[-2:], x.shape[-2:])

    def predict_queries(self, x: Tensor) -> Queries:
        """Map normalised images (B, C, H, W), sides multiples of `padding_multiple`, to queries of their extent."""
        raise TypeError(f"{type(self).__name__} has no queries: subclasses define `predict_queries`")

    def predict_last(self, x: Tensor) -> Queries:
        """Map images as `predict_queries` does, but for the last layer alone, where the others can be left out."""
        return self.predict_queries(x)

    def dense_logits(self, queries: Queries, size: Sequence[int]) -> Tensor:
        """Turn queries into logits (B, num_classes, *size)."""
        # image by image: all masks of a batch at full size would take gigabytes
        images = zip(queries["pred_masks"].split(1), queries["pred_logits"].split(1), strict=True)
        return torch.cat([queries_to_logits(masks, classes, size, self.regions) for masks, classes in images])


def resolve_options(options: dict[str, Any], batch_size: int, regions: bool) -> dict[str, Any]:
    """Note in the plans of an experiment whether its classes are regions.

    Args:
        options: the decoder's keywords.
        batch_size: images per batch.
        regions: whether the data set declares regions.
    """
    return {**options, "regions": regions}
