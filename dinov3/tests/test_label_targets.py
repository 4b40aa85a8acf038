"""The masks of one image's labels, whatever their numbers and their type."""

import pytest
import torch

from dinov3.eval.segmentation.m2f_targets import label_target


@pytest.mark.parametrize("ignored", [255, -1, None])
@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0, 1, 254, 255], torch.uint8),
        ([0, 3, 255], torch.int64),
        ([-1, 0, 5], torch.int64),
        ([-7, 2, 2**40], torch.int64),  # too far apart to be counted
        ([4], torch.int32),
    ],
)
def test_every_class_has_its_mask(values: list[int], dtype: torch.dtype, ignored: int | None):
    torch.manual_seed(0)
    labels = torch.tensor(values, dtype=dtype)[torch.randint(len(values), (20, 30))]
    target = label_target(labels, ignored)
    assert target["labels"].tolist() == [value for value in values if value != ignored]
    assert target["labels"].dtype == torch.int64 and target["masks"].dtype == torch.bool
    for mask, value in zip(target["masks"], target["labels"].tolist(), strict=True):
        assert torch.equal(mask, labels.long() == value)
    assert ("valid" in target) == (ignored in values)
    if "valid" in target:
        assert torch.equal(target["valid"], labels.long() != ignored)
