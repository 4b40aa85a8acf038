"""The targets of a batch in mask classification."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dinov3.eval.segmentation.point_sampler import sample

OUTSIDE = -3.0  # beyond any pixel that bilinear sampling touches, even of a map of one pixel


class TargetBatch:
    """The targets of a batch, T masks in all, concatenated.

    Args:
        targets: per image `masks` (N, H, W), `labels` (N,), and perhaps `valid` (H, W), False where a pixel is
            ignored.
        device: where to put them.

    Attributes:
        counts: number of targets per image.
        first: index of each image's first target.
        masks: (T, H, W), float32.
        labels: (T,), int64.
        images: index of each target's image, (T,).
        ignored: 1 where a pixel is ignored, (B, 1, H, W), float32; None if none is.
    """

    def __init__(self, targets: Sequence[dict[str, Tensor]], device: torch.device) -> None:
        self.counts = [len(target["labels"]) for target in targets]
        self.first = [sum(self.counts[:image]) for image in range(len(targets))]
        self.masks = torch.cat([target["masks"] for target in targets]).to(device, torch.float32)
        self.labels = torch.cat([target["labels"] for target in targets]).to(device, torch.int64)
        numbers = [image for image, count in enumerate(self.counts) for _ in range(count)]
        places = [place for count in self.counts for place in range(count)]
        self.images = torch.tensor(numbers, dtype=torch.int64, device=device)
        self._places = torch.tensor(places, dtype=torch.int64, device=device)
        self.ignored = None
        if any("valid" in target for target in targets):
            everything = torch.ones(self.masks.shape[1:], dtype=torch.bool, device=device)
            valid = torch.stack([target.get("valid", everything).to(device) for target in targets])
            self.ignored = (~valid).unsqueeze(1).to(torch.float32)

    def has_valid_pixels(self) -> Tensor:
        """1 for images that are not ignored as a whole, otherwise 0: (B,), float32."""
        if self.ignored is None:
            return torch.ones(len(self.counts), device=self.masks.device)
        return (self.ignored == 0).flatten(1).any(1).to(torch.float32)

    def by_image(self, values: Tensor) -> Tensor:
        """Arrange values of all targets, (T, …), by image, (B, N, …), padded with zeros."""
        arranged = values.new_zeros((len(self.counts), max(self.counts), *values.shape[1:]))
        arranged[self.images, self._places] = values
        return arranged

    def discard_ignored(self, grid: Tensor, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Move points that touch an ignored pixel out of the image, where every map is sampled as 0.

        Args:
            grid: (x, y), -1 to 1, (R, P, 2).
            images: index of each row's image, (R,).

        Returns:
            The points, (R, P, 2), and their weights, (R, P): 0 for those that were moved, otherwise 1; None if no pixel
            is ignored.
        """
        if self.ignored is None:
            return grid, None
        valid = sample(self.ignored[images], grid, "border").squeeze(1) == 0
        return grid.where(valid.unsqueeze(-1), OUTSIDE), valid.to(grid.dtype)
