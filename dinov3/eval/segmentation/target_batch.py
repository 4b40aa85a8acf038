"""The targets of a batch in mask classification, and the sampling of maps at points."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def sample(maps: Tensor, grid: Tensor, padding_mode: str = "zeros") -> Tensor:
    """Sample maps bilinearly.

    Args:
        maps: (B, C, h, w).
        grid: (x, y), -1 to 1 inside of the map, (B, P, 2).
        padding_mode: what is outside of the outermost pixel centres, as in `torch.nn.functional.grid_sample`.

    Returns:
        (B, C, P).
    """
    return F.grid_sample(
        maps, grid.unsqueeze(2), mode="bilinear", padding_mode=padding_mode, align_corners=False
    ).squeeze(-1)


class TargetBatch:
    """The targets of a batch, T masks in all, one after the other.

    Args:
        targets: per image `masks` (N, H, W), `labels` (N,), and perhaps `valid` (H, W), False where a pixel is
            ignored.
        device: where to put them.

    Attributes:
        counts: number of targets per image.
        first: number of each image's first target.
        masks: (T, H, W), float32.
        labels: (T,), int64.
        images: number of the image that each belongs to, (T,).
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

    def take_part(self) -> Tensor:
        """1 for images of which some pixel takes part, otherwise 0: (B,), float32."""
        if self.ignored is None:
            return torch.ones(len(self.counts), device=self.masks.device)
        return (self.ignored == 0).flatten(1).any(1).to(torch.float32)

    def by_image(self, values: Tensor) -> Tensor:
        """Arrange values of all targets, (T, …), by image, (B, N, …), filled up with zeros."""
        arranged = values.new_zeros((len(self.counts), max(self.counts), *values.shape[1:]))
        arranged[self.images, self._places] = values
        return arranged

    def weights(self, grid: Tensor, images: Tensor) -> Tensor | None:
        """1 for points that touch no ignored pixel, otherwise 0.

        Args:
            grid: (x, y), -1 to 1, (R, P, 2).
            images: number of the image of every row, (R,).

        Returns:
            (R, P), or None if nothing is ignored.
        """
        if self.ignored is None:
            return None
        return (sample(self.ignored[images], grid, "border").squeeze(1) == 0).to(grid.dtype)
