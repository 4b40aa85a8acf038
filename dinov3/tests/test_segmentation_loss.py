"""Cross-entropy and Dice loss of dense logits."""

import pytest
import torch
import torch.nn.functional as F

from dinov3.eval.segmentation.loss import MultiSegmentationLoss, cross_entropy, dice_loss


def batch(images: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    labels = torch.randint(3, (images, 8, 9))
    labels[0, :3] = 255
    return torch.randn(images, 4, 8, 9), labels


def test_cross_entropy_is_torchs_where_nothing_is_ignored():
    logits, labels = batch()
    labels = labels.clamp(max=3)
    assert float(cross_entropy(logits, labels)) == pytest.approx(float(F.cross_entropy(logits, labels)))


def test_dice_of_one_image_by_hand():
    logits = torch.tensor(
        [[[[0.0, 100.0, 0.0]], [[100.0, 0.0, 0.0]], [[-99.0] * 3]]]
    )  # classes 1, 0, and one half each
    labels = torch.tensor([[[1, 0, 0]]])
    first, second = 1 - (2 * 1.5 + 1) / (1.5 + 2 + 1), 1 - (2 * 1 + 1) / (1.5 + 1 + 1)
    assert float(dice_loss(logits, labels)) == pytest.approx((first + second) / 2)


def test_good_predictions_have_no_loss():
    labels = batch()[1].clamp(max=3)
    logits = 100 * F.one_hot(labels, 4).movedim(-1, 1).float()
    assert float(MultiSegmentationLoss(1.0, 1.0)(logits, labels)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.5, 2.0)])
def test_ignored_pixels_have_no_effect(weights: tuple[float, float]):
    logits, labels = batch()
    loss = MultiSegmentationLoss(*weights)
    expected = loss(logits, labels)
    changed = torch.where((labels == 255).unsqueeze(1), torch.randn_like(logits), logits).requires_grad_()
    found = loss(changed, labels)
    assert torch.equal(found, expected)
    found.backward()
    assert not changed.grad.movedim(1, -1)[labels == 255].any() and changed.grad.any()


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)])
def test_the_mean_of_two_batches_is_the_loss_of_both(weights: tuple[float, float]):
    logits, labels = batch(4)
    loss = MultiSegmentationLoss(*weights)
    halves = (loss(logits[:2], labels[:2]) + loss(logits[2:], labels[2:])) / 2
    assert float(halves) == pytest.approx(float(loss(logits, labels)))


def test_an_image_without_labels_has_no_loss():
    loss = MultiSegmentationLoss(1.0, 1.0)(batch()[0], torch.full((2, 8, 9), 255))
    assert float(loss) == 0


def test_the_loss_is_float32_whatever_the_logits_are():
    logits, labels = batch()
    assert MultiSegmentationLoss(1.0, 1.0)(logits.bfloat16(), labels).dtype == torch.float32


@pytest.mark.parametrize("weights", [(0, 0), (-1, 1)])
def test_weights_without_a_loss_are_refused(weights: tuple[float, float]):
    with pytest.raises(ValueError, match=f"found {weights[0]} and {weights[1]}"):
        MultiSegmentationLoss(*weights)
