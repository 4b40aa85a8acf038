"""Augmentation and normalisation of images with their labels."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from dinov3.eval.segmentation.m2f_targets import semantic_to_m2f_targets
from dinov3.eval.segmentation.mask_classification_loss import MaskClassificationLoss
from dinov3.eval.segmentation.resizing import PadToSize, RandomCropWithClassLimit
from dinov3.eval.segmentation.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ReduceZeroLabel,
    collate_segmentation,
    make_photometric_distortion,
    make_segmentation_eval_transforms,
    make_segmentation_train_transforms,
)

EVERYTHING = {"img_size": 32, "random_img_size_ratio_range": (0.5, 2.0), "crop_size": (32, 40), "flip_prob": 0.5}
PLAIN = {"photometric_distortion": False}


def picture(height: int = 40, width: int = 60) -> tuple[Tensor, Tensor]:
    """An image whose colours tell the labels, 0 to 5: columns of 10 pixels."""
    labels = (torch.arange(width) // 10).expand(height, -1).to(torch.uint8)
    return torch.stack([labels * 40, 255 - labels * 40, labels * 20]), labels.contiguous()


def denormalised(image: Tensor) -> Tensor:
    return image * torch.tensor(IMAGENET_STD).view(3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(3, 1, 1)


@pytest.mark.parametrize("decoder_type", ["linear", "m2f"])
def test_image_and_labels_change_together(decoder_type: str):
    transform = make_segmentation_train_transforms(**EVERYTHING, **PLAIN, decoder_type=decoder_type)
    image, labels = picture()
    mirrored = []
    for seed in range(20):
        torch.manual_seed(seed)
        x, target = transform(image, labels)
        assert x.shape == (3, 32, 40) and x.dtype == torch.float32
        if decoder_type == "m2f":
            dense = torch.full((32, 40), 255)
            for mask, label in zip(target["masks"], target["labels"], strict=True):
                dense[mask] = label
            target = dense
        assert target.shape == (32, 40) and target.dtype == torch.int64
        found = (denormalised(x)[0] / 40).round()
        valid = target != 255
        assert (found == target)[valid].float().mean() > 0.9, "only edges may differ, where colours are interpolated"
        assert not x[:, ~valid].any(), "padding has the mean colour"
        row = target[0][target[0] != 255]
        mirrored.append(bool(row[0] > row[-1]))
    assert 0 < sum(mirrored) < 20


@pytest.mark.parametrize("kind", ["pillow", "numpy", "tensor", "float"])
def test_every_kind_of_image_gives_the_same(kind: str):
    image, labels = picture()
    as_numpy = image.permute(1, 2, 0).numpy()
    inputs: dict[str, tuple[Any, Any]] = {
        "pillow": (Image.fromarray(as_numpy), Image.fromarray(labels.numpy())),
        "numpy": (as_numpy, labels.numpy().astype(np.int32)),
        "tensor": (image, labels),
        "float": (image / 255, labels.long()),
    }
    for transform in (make_segmentation_train_transforms(**PLAIN), make_segmentation_eval_transforms()):
        x, found = transform(*inputs[kind])
        x = x[0] if isinstance(x, list) else x
        assert torch.allclose(denormalised(x), image.float(), atol=1e-3) and torch.equal(found, labels.long())
        assert type(found) is Tensor


def test_the_size_after_resizing_is_within_the_range():
    transform = make_segmentation_train_transforms(100, (0.5, 2.0), **PLAIN)
    sides = [min(transform(*picture())[0].shape[-2:]) for _ in range(40)]
    assert 50 <= min(sides) < 80 and 150 < max(sides) <= 200
    assert make_segmentation_train_transforms(20, **PLAIN)(*picture())[0].shape == (3, 20, 30)


def test_a_crop_limits_the_share_of_one_class():
    labels = tv_tensors.Mask(torch.zeros(100, 100, dtype=torch.uint8))
    labels[40:60, 40:60] = 1
    image = tv_tensors.Image(labels.repeat(3, 1, 1))

    def largest_shares(**options: Any) -> list[float]:
        crop = RandomCropWithClassLimit((20, 20), 255, **options)
        crops = [crop(image, labels)[1] for _ in range(60)]
        return [float(max((found == 0).float().mean(), (found == 1).float().mean())) for found in crops]

    torch.manual_seed(0)
    limited = largest_shares(attempts=200)
    assert max(limited) <= 0.75, "one class more than the limit although there are such places"
    assert sum(share == 1 for share in largest_shares(max_share=1.0)) > 20
    assert max(largest_shares(attempts=1)) == 1, "after the last attempt any crop will do"


def test_ignored_pixels_do_not_count_in_the_share():
    labels = torch.full((16, 8), 255, dtype=torch.uint8)
    labels[0, :4], labels[1, :4] = 0, 1
    crop = RandomCropWithClassLimit((16, 4), 255, attempts=100)
    for seed in range(10):
        torch.manual_seed(seed)
        _, found = crop(tv_tensors.Image(labels.repeat(3, 1, 1)), tv_tensors.Mask(labels))
        assert (found == 0).any() and (found == 1).any()


def test_padding_is_at_the_bottom_and_right():
    image, labels = PadToSize((4, 5), 255)(tv_tensors.Image(torch.ones(3, 3, 3)), tv_tensors.Mask(torch.ones(3, 3)))
    assert image.shape == (3, 4, 5) and labels.shape == (4, 5)
    assert image.sum() == 27 and not image[:, 3:].any() and not image[:, :, 3:].any()
    assert (labels[:3, :3] == 1).all() and (labels[3:] == 255).all() and (labels[:, 3:] == 255).all()


def test_photometric_distortion_leaves_the_labels_and_sometimes_the_image():
    distort = make_photometric_distortion()
    image, labels = picture()
    torch.manual_seed(0)
    found = [distort(tv_tensors.Image(image), tv_tensors.Mask(labels)) for _ in range(60)]
    assert all(torch.equal(mask, labels) for _, mask in found)
    same = sum(torch.equal(x, image) for x, _ in found)
    assert 0 < same < 20
    assert all(x.dtype == torch.uint8 for x, _ in found)
    assert len({x.float().mean().item() for x, _ in found}) > 30


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_reduce_zero_label(dtype: torch.dtype):
    labels = torch.tensor([[0, 1, 2, 150, 255]], dtype=dtype)
    for transform in (
        make_segmentation_train_transforms(reduce_zero_label=True),
        make_segmentation_eval_transforms(reduce_zero_label=True),
    ):
        _, found = transform(torch.zeros(3, 1, 5, dtype=torch.uint8), labels)
        assert found.tolist() == [[255, 0, 1, 149, 255]]
    image = tv_tensors.Image(torch.zeros(3, 1, 5))
    assert torch.equal(ReduceZeroLabel()(image, tv_tensors.Mask(labels))[0], image)


def test_evaluation_has_a_view_for_each_ratio_and_labels_in_their_own_size():
    image, labels = picture()
    views, found = make_segmentation_eval_transforms(80, (0.5, 1.0, 1.1))(image, labels)
    assert [tuple(view.shape) for view in views] == [(3, 40, 60), (3, 80, 120), (3, 88, 132)]
    assert torch.equal(found, labels.long())
    assert torch.allclose(denormalised(views[0]), image.float(), atol=1e-3)
    (view,), _ = make_segmentation_eval_transforms()(image, labels)
    assert view.shape == image.shape


def test_targets_are_those_of_the_labels():
    image, labels = picture()
    labels[:5] = 255
    _, target = make_segmentation_train_transforms(decoder_type="m2f")(image, labels)
    expected = semantic_to_m2f_targets(labels)
    assert target.keys() == expected.keys() == {"masks", "labels", "valid"}
    assert all(torch.equal(target[key].float(), expected[key].float()) for key in expected)


def test_batches_of_a_loader_suit_the_loss():
    class Pictures(torch.utils.data.Dataset):
        transform = make_segmentation_train_transforms(**EVERYTHING, decoder_type="m2f")

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Any:
            image, labels = picture()
            return self.transform(image, labels.clamp(max=index))  # another number of masks for each

    torch.manual_seed(0)
    images, targets = next(iter(DataLoader(Pictures(), 4, collate_fn=collate_segmentation)))
    assert images.shape == (4, 3, 32, 40) and [len(target["labels"]) for target in targets] != [1] * 4
    loss = MaskClassificationLoss(64, 3.0, 0.75, 5.0, 5.0, 2.0, 6, 0.1)
    losses = loss(torch.randn(4, 8, 8, 10), targets, torch.randn(4, 8, 7))
    assert all(bool(value.isfinite()) for value in losses.values())


def test_views_and_labels_are_collated():
    sample = make_segmentation_eval_transforms(20, (1.0, 2.0))(*picture())
    images, labels = collate_segmentation([sample, sample])
    assert [tuple(view.shape) for view in images] == [(2, 3, 20, 30), (2, 3, 40, 60)] and labels.shape == (2, 40, 60)


def test_torchs_seed_decides_everything():
    def drawn(seed: int) -> list[Tensor]:
        transform = make_segmentation_train_transforms(**EVERYTHING)
        torch.manual_seed(seed)
        return [part for _ in range(3) for part in transform(*picture())]

    assert all(torch.equal(a, b) for a, b in zip(drawn(1), drawn(1), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(drawn(1), drawn(2), strict=True))


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="one of linear, m2f, found 'unet'"):
        make_segmentation_train_transforms(decoder_type="unet")
    with pytest.raises(ValueError, match=r"the smaller first, found 2\.0, 0\.5"):
        make_segmentation_train_transforms(random_img_size_ratio_range=(2.0, 0.5))
    with pytest.raises(ValueError, match="same height and width, found 40 x 60 and 40 x 59"):
        make_segmentation_eval_transforms()(picture()[0], picture()[1][:, :59])
    for image, found in ((torch.zeros(1, 4, 4), "1 of float32"), (np.zeros((4, 4, 3), dtype=np.int32), "3 of int32")):
        with pytest.raises(ValueError, match=f"3 channels of uint8 or floats, found {found}"):
            make_segmentation_eval_transforms()(image, torch.zeros(4, 4))
